// Which numbers of a run are shown first, and how: the questions one asks of a training run, in their order.
import type { ScaleKind } from '../charts/scale';

export type Unit = 'number' | 'share' | 'bytes' | 'seconds';

/** A chart: one or several metrics of which a run has at least one. */
export interface Panel {
  readonly id: string;
  readonly metrics: readonly string[];
  readonly scale: ScaleKind;
  readonly unit: Unit;
}

interface Template {
  readonly id: string;
  /** In the order of drawing. A name that ends in * stands for all that begin so. */
  readonly metrics: readonly string[];
  readonly scale?: ScaleKind;
  readonly unit?: Unit;
}

const TEMPLATES: readonly Template[] = [
  { id: 'reward', metrics: ['reward/mean', 'reward/best'] },
  { id: 'parts', metrics: ['reward/part/*'] },
  { id: 'accuracy', metrics: ['eval/accuracy', 'eval/accuracy/lenient', 'accuracy'], unit: 'share' },
  { id: 'loss', metrics: ['loss', 'eval/loss', 'critic/loss'] },
  { id: 'margin', metrics: ['margin', 'eval/margin'] },
  { id: 'length', metrics: ['tokens/mean', 'tokens/right', 'tokens/wrong', 'eval/tokens'] },
  { id: 'truncated', metrics: ['truncated', 'groups/flat', 'reward/failed'], unit: 'share' },
  { id: 'entropy', metrics: ['entropy'] },
  { id: 'kl', metrics: ['kl', 'old_kl'] },
  { id: 'mismatch', metrics: ['mismatch/k3'], scale: 'log' },
  { id: 'effective', metrics: ['mismatch/effective_samples'], unit: 'share' },
  { id: 'gradient', metrics: ['grad_norm', 'critic/grad_norm'] },
  { id: 'clipped', metrics: ['clip_fraction', 'critic/clip_fraction'], unit: 'share' },
  { id: 'value', metrics: ['explained_variance'] },
  { id: 'rate', metrics: ['learning_rate', 'critic/learning_rate'] },
  { id: 'throughput', metrics: ['tokens_per_s/sampling', 'tokens_per_s/update', 'tokens_per_s'] },
  { id: 'memory', metrics: ['memory_bytes'], unit: 'bytes' },
];

/** The panels for the metrics that there are. apart: each metric its own panel (several runs share a chart). */
export function panels(names: readonly string[], apart = false): Panel[] {
  const found: Panel[] = [];
  for (const { id, metrics, scale = 'linear', unit = 'number' } of TEMPLATES) {
    const there = metrics.flatMap((name) => matching(name, names));
    if (there.length === 0) continue;
    // of several runs, one chart would hold runs × metrics: only the first metric, and every part of the reward
    const shown = !apart ? [there] : id === 'parts' ? there.map((name) => [name]) : [there.slice(0, 1)];
    for (const some of shown) {
      found.push({ id: some.length === 1 && apart && id === 'parts' ? some[0]! : id, metrics: some, scale, unit });
    }
  }
  return found;
}

/** All other metrics, one panel each; ends of intervals are drawn with their value, not as curves. */
export function others(names: readonly string[], shown: readonly Panel[]): Panel[] {
  const taken = new Set(shown.flatMap((panel) => panel.metrics));
  return names
    .filter((name) => name !== 'step' && !taken.has(name) && !isEnd(name, names))
    .sort((a, b) => a.localeCompare(b))
    .map((name) => ({ id: name, metrics: [name], scale: 'linear', unit: unitOf(name) }));
}

/** A metric with an interval around it: NAME/low and NAME/high. */
export function ends(name: string, names: readonly string[]): [string, string] | null {
  const low = `${name}/low`;
  const high = `${name}/high`;
  return names.includes(low) && names.includes(high) ? [low, high] : null;
}

function isEnd(name: string, names: readonly string[]): boolean {
  const base = name.replace(/\/(?:low|high)$/, '');
  return base !== name && ends(base, names) !== null;
}

export function unitOf(name: string): Unit {
  if (/(^|[/_])bytes($|\/)/.test(name)) return 'bytes';
  return /(^|\/)seconds\//.test(name) ? 'seconds' : 'number';
}

function matching(pattern: string, names: readonly string[]): string[] {
  if (!pattern.endsWith('*')) return names.includes(pattern) ? [pattern] : [];
  const start = pattern.slice(0, -1);
  return names.filter((name) => name.startsWith(start)).sort();
}

/** Phases of which a step's time is the sum; others are inside one of them. */
const INSIDE = /^(?:.+\/)?seconds\/(?:forward|backward|optimizer|step)$|^.+\/seconds\//;

export function phases(names: readonly string[]): string[] {
  const order = ['sampling', 'scoring', 'update', 'publish', 'evaluation', 'eval', 'storing', 'saving'];
  const place = (name: string): number => {
    const at = order.indexOf(name.slice('seconds/'.length));
    return at < 0 ? order.length : at;
  };
  return names
    .filter((name) => name.startsWith('seconds/') && !INSIDE.test(name))
    .sort((a, b) => place(a) - place(b) || a.localeCompare(b));
}
