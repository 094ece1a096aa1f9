// The list of runs as rows: what is shown of each, and in which order.
import type { RunSummary } from './types';

export type Column = 'name' | 'state' | 'verb' | 'step' | 'left' | 'reward' | 'accuracy' | 'loss' | 'findings' | 'started';

export interface Order {
  readonly column: Column;
  readonly descending: boolean;
}

/** Seconds until its last planned step; null where nothing runs, or nothing is planned or measured. */
export function secondsLeft(run: {
  state: string;
  step?: number | null;
  steps?: number | null;
  seconds_per_step?: number | null;
}): number | null {
  if (run.state !== 'running' || run.steps == null || run.step == null || run.seconds_per_step == null) return null;
  return Math.max(0, run.steps - run.step) * run.seconds_per_step;
}

function lastOf(run: RunSummary, names: readonly string[]): number | null {
  for (const name of names) {
    const value = run.last[name];
    if (value !== null && value !== undefined) return value;
  }
  return null;
}

export function rewardOf(run: RunSummary): number | null {
  return lastOf(run, ['reward/mean', 'eval/reward']);
}

export function accuracyOf(run: RunSummary): number | null {
  return lastOf(run, ['eval/accuracy', 'accuracy']);
}

export function lossOf(run: RunSummary): number | null {
  return lastOf(run, ['eval/loss', 'loss']);
}

/** Every word of the filter somewhere in name, verb or state. */
export function matches(run: RunSummary, filter: string): boolean {
  const text = `${run.name} ${run.verb} ${run.state}`.toLowerCase();
  return filter
    .toLowerCase()
    .split(/\s+/)
    .every((word) => text.includes(word));
}

function valueOf(run: RunSummary, column: Column): number | string | null {
  switch (column) {
    case 'name':
      return run.name;
    case 'state':
      return run.state;
    case 'verb':
      return run.verb;
    case 'step':
      return run.step;
    case 'left':
      return secondsLeft(run);
    case 'reward':
      return rewardOf(run);
    case 'accuracy':
      return accuracyOf(run);
    case 'loss':
      return lossOf(run);
    case 'findings':
      return run.findings ?? 0;
    case 'started':
      return run.started_at;
  }
}

/** A sorted copy; runs without a value come last either way. Names as people count: run-2 before run-10. */
export function sorted(runs: readonly RunSummary[], { column, descending }: Order): RunSummary[] {
  const sign = descending ? -1 : 1;
  return [...runs].sort((a, b) => {
    const left = valueOf(a, column);
    const right = valueOf(b, column);
    if (left === null || right === null) return Number(left === null) - Number(right === null);
    if (typeof left === 'number' && typeof right === 'number') return sign * (left - right);
    return sign * String(left).localeCompare(String(right), undefined, { numeric: true });
  });
}

/** How long ago, in the language's words. */
export function ago(stamp: string, language: string, now = Date.now()): string {
  const seconds = (Date.parse(stamp) - now) / 1000;
  if (!Number.isFinite(seconds)) return '–';
  const format = new Intl.RelativeTimeFormat(language, { numeric: 'auto', style: 'short' });
  const units: [Intl.RelativeTimeFormatUnit, number][] = [
    ['day', 86400],
    ['hour', 3600],
    ['minute', 60],
  ];
  for (const [unit, size] of units) {
    if (Math.abs(seconds) >= size) return format.format(Math.round(seconds / size), unit);
  }
  return format.format(Math.round(seconds), 'second');
}
