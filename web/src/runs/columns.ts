// Columns of metrics as curves: without gaps, joined with what is written while one looks.
import type { Band, Points } from '../charts/series';
import type { Columns, MetricsRow } from './types';

/** A metric of one run. low, high: the extremes of its bins, where a long run was binned. */
export interface Curve {
  readonly points: Points;
  readonly extremes?: Band;
}

export type Curves = Readonly<Record<string, Curve>>;

/** One curve for each column; steps where a metric has no value are left out. */
export function curvesOf(columns: Columns): Record<string, Curve> {
  const found: Record<string, Curve> = {};
  for (const [name, values] of Object.entries(columns)) {
    if (name === 'step' || /:(?:min|max)$/.test(name)) continue;
    const x: number[] = [];
    const y: number[] = [];
    const kept: number[] = [];
    values.forEach((value, at) => {
      if (value === null || !Number.isFinite(value)) return;
      x.push(columns.step[at]!);
      y.push(value);
      kept.push(at);
    });
    const low = columns[`${name}:min`];
    const high = columns[`${name}:max`];
    const points = { x, y };
    found[name] =
      low && high
        ? { points, extremes: { x, low: kept.map((at) => low[at] ?? NaN), high: kept.map((at) => high[at] ?? NaN) } }
        : { points };
  }
  return found;
}

/**
 * Rows put at the end. A row whose step was there already replaces it and all after it: the run was resumed from a
 * checkpoint and repeats them.
 */
export function withRows(curves: Curves, rows: readonly MetricsRow[]): Record<string, Curve> {
  const found: Record<string, Curve> = { ...curves };
  if (rows.length === 0) return found;
  const first = Math.min(...rows.map(({ step }) => step));
  for (const [name, curve] of Object.entries(found)) found[name] = before(curve, first);
  const sorted = [...rows].sort((a, b) => a.step - b.step);
  const names = new Set(rows.flatMap((row) => Object.keys(row)));
  names.delete('step');
  for (const name of names) {
    const old = found[name]?.points;
    const x = old ? Array.from(old.x) : [];
    const y = old ? Array.from(old.y) : [];
    for (const row of sorted) {
      const value = row[name];
      if (value === null || value === undefined || !Number.isFinite(value)) continue;
      // the same step twice in one batch: the later one holds
      if (x[x.length - 1] === row.step) y[y.length - 1] = value;
      else {
        x.push(row.step);
        y.push(value);
      }
    }
    const extremes = found[name]?.extremes;
    found[name] = extremes ? { points: { x, y }, extremes } : { points: { x, y } };
  }
  return found;
}

function before(curve: Curve, step: number): Curve {
  const { x, y } = curve.points;
  let end = x.length;
  while (end > 0 && x[end - 1]! >= step) end--;
  if (end === x.length) return curve;
  const cut = <T extends ArrayLike<number>>(values: T): number[] => Array.from(values).slice(0, end);
  const points = { x: cut(x), y: cut(y) };
  const extremes = curve.extremes;
  return extremes ? { points, extremes: { x: cut(extremes.x), low: cut(extremes.low), high: cut(extremes.high) } } : { points };
}
