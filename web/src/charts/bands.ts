// Several runs that differ only in their seed, as one curve: their mean, and how far they lie apart.
import type { Band, Points } from './series';
import { finite, lastBefore } from './series';

export type Spread = 'range' | 'interval';

export interface MeanBand {
  readonly mean: Points;
  readonly band: Band;
  /** Runs that have a value at each step. */
  readonly counts: Float64Array;
}

/**
 * 'range': lowest and highest run. 'interval': mean ± t · s / √n, the 95 % interval of the mean (Student's t,
 * n − 1 degrees of freedom); of one run it is the point itself.
 *
 * At each step that any run has; runs that have other steps (an evaluation every 10, bins of a long run) are
 * interpolated inside their own range and take no part outside of it.
 */
export function meanBand(runs: readonly Points[], spread: Spread): MeanBand {
  const curves = runs.map(finite).filter((points) => points.x.length > 0);
  const steps = unionOfSteps(curves);
  const mean = new Float64Array(steps.length);
  const low = new Float64Array(steps.length);
  const high = new Float64Array(steps.length);
  const counts = new Float64Array(steps.length);
  for (let i = 0; i < steps.length; i++) {
    const values: number[] = [];
    for (const curve of curves) {
      const value = valueAt(curve, steps[i]!);
      if (!Number.isNaN(value)) values.push(value);
    }
    const middle = values.reduce((sum, value) => sum + value, 0) / values.length;
    const half = spread === 'interval' ? halfInterval(values, middle) : 0;
    mean[i] = middle;
    low[i] = spread === 'interval' ? middle - half : Math.min(...values);
    high[i] = spread === 'interval' ? middle + half : Math.max(...values);
    counts[i] = values.length;
  }
  return { mean: { x: steps, y: mean }, band: { x: steps, low, high }, counts };
}

/** Linear between points; NaN outside. */
export function valueAt({ x, y }: Points, step: number): number {
  const before = lastBefore(x, step);
  if (before < 0) return NaN;
  if (x[before] === step) return y[before]!;
  if (before === x.length - 1) return NaN;
  const share = (step - x[before]!) / (x[before + 1]! - x[before]!);
  return y[before]! + share * (y[before + 1]! - y[before]!);
}

function unionOfSteps(curves: readonly Points[]): Float64Array {
  const all = new Set<number>();
  for (const { x } of curves) for (let i = 0; i < x.length; i++) all.add(x[i]!);
  return Float64Array.from(all).sort();
}

function halfInterval(values: readonly number[], mean: number): number {
  const n = values.length;
  if (n < 2) return 0;
  const variance = values.reduce((sum, value) => sum + (value - mean) ** 2, 0) / (n - 1);
  return studentT(n - 1) * Math.sqrt(variance / n);
}

const T95 = [
  12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.16, 2.145, 2.131, 2.12, 2.11,
  2.101, 2.093, 2.086, 2.08, 2.074, 2.069, 2.064, 2.06, 2.056, 2.052, 2.048, 2.045, 2.042,
];

/** 97.5 % quantile of Student's t; above 30 degrees of freedom by its expansion about the normal's 1.96. */
export function studentT(freedom: number): number {
  return T95[freedom - 1] ?? 1.96 + 2.372 / freedom;
}
