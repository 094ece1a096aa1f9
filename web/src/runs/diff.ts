// The settings of several runs beside each other, and which runs differ only in their seed.
import { settingsOf, type Setting } from './toml';

export interface DiffRow {
  readonly path: string;
  readonly table: string;
  readonly key: string;
  /** One for each run; null where the run does not have the setting. */
  readonly values: readonly (string | null)[];
  readonly differs: boolean;
}

/** What says which run it is, not what it does. */
const NAMES = new Set(['run.seed', 'run.name', 'run.folder', 'seed', 'name', 'folder']);

/** Whether a setting says which run it is and not what it does. */
export function isName(path: string): boolean {
  return NAMES.has(path);
}

/** Rows in the order of the first run that has them. */
export function diff(configs: readonly string[]): DiffRow[] {
  const runs = configs.map((text) => new Map(settingsOf(text).map((setting) => [setting.path, setting])));
  const order = new Map<string, Setting>();
  for (const run of runs) for (const [path, setting] of run) if (!order.has(path)) order.set(path, setting);
  const tables = [...new Set([...order.values()].map((setting) => setting.table))];
  return [...order.values()]
    .sort((a, b) => tables.indexOf(a.table) - tables.indexOf(b.table))
    .map(({ path, table, key }) => {
      const values = runs.map((run) => run.get(path)?.value ?? null);
      return { path, table, key, values, differs: new Set(values).size > 1 };
    });
}

/** largest-0, largest-seed1, largest_2 → largest. A name that is nothing but a number stays. */
export function stem(name: string): string {
  return name.replace(/[-_.](?:seed|s)?[-_]?\d+$/i, '') || name;
}

export interface NamedConfig {
  readonly name: string;
  readonly config: string;
}

export interface Group {
  readonly label: string;
  readonly runs: readonly string[];
}

/** Runs whose settings are equal but for seed and name are one group, in the order of their first run. */
export function groups(runs: readonly NamedConfig[]): Group[] {
  const found = new Map<string, string[]>();
  for (const { name, config } of runs) {
    const settings = settingsOf(config).filter(({ path }) => !NAMES.has(path));
    const key = JSON.stringify(settings.map(({ path, value }) => [path, value]).sort());
    // without any settings nothing is known to be equal
    const own = settings.length > 0 ? key : name;
    found.set(own, [...(found.get(own) ?? []), name]);
  }
  return labelled([...found.values()]);
}

/** A group is named by what its runs' names share; two groups never have one label. */
function labelled(all: readonly string[][]): Group[] {
  const labels = all.map((runs) => {
    if (runs.length === 1) return runs[0]!;
    const stems = new Set(runs.map(stem));
    return stems.size === 1 ? stem(runs[0]!) : `${runs[0]!} +${runs.length - 1}`;
  });
  return all.map((runs, at) => {
    const label = labels[at]!;
    const taken = labels.indexOf(label) !== at || (runs.length > 1 && labels.filter((other) => other === label).length > 1);
    return { label: taken ? `${label} (${runs.join(', ')})` : label, runs };
  });
}
