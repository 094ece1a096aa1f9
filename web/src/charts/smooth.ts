// Smoothed curves. Gaps (NaN) stay gaps and never spread; no value is invented where there is none.
export type Smoothing = 'ema' | 'gaussian';

/**
 * Exponential moving average, debiased: y_i = Σ_k w^(x_i − x_k) v_k / Σ_k w^(x_i − x_k) over k ≤ i.
 *
 * Distances are in units of the usual distance of two points (their median), so that curves with a point
 * every tenth step are smoothed as much as curves with one each step, and a gap weighs as what it is.
 * weight 0 gives the values themselves. Without the division (the bias) the curve would begin at 0.
 */
export function ema(steps: ArrayLike<number>, values: ArrayLike<number>, weight: number): Float64Array {
  const out = new Float64Array(values.length).fill(NaN);
  const unit = usualDistance(steps, values);
  let sum = 0;
  let norm = 0;
  let before = NaN;
  for (let i = 0; i < values.length; i++) {
    const value = values[i]!;
    if (!Number.isFinite(value)) continue;
    const step = steps[i]!;
    const decay = Number.isNaN(before) ? 0 : weight ** ((step - before) / unit);
    sum = sum * decay + value;
    norm = norm * decay + 1;
    out[i] = sum / norm;
    before = step;
  }
  return out;
}

/**
 * Gaussian kernel, symmetric: y_i = Σ_k g(x_i − x_k) v_k / Σ_k g(x_i − x_k), g of width sigma (in steps).
 * It does not lag behind as an average of the past does, but its last points still move while a run goes on.
 */
export function gaussian(steps: ArrayLike<number>, values: ArrayLike<number>, sigma: number): Float64Array {
  const out = new Float64Array(values.length).fill(NaN);
  if (!(sigma > 0)) return Float64Array.from(values);
  let first = 0;
  for (let i = 0; i < values.length; i++) {
    if (!Number.isFinite(values[i]!)) continue;
    const middle = steps[i]!;
    while (steps[first]! < middle - 3 * sigma) first++;
    let sum = 0;
    let norm = 0;
    for (let k = first; k < values.length && steps[k]! <= middle + 3 * sigma; k++) {
      const value = values[k]!;
      if (!Number.isFinite(value)) continue;
      const distance = (steps[k]! - middle) / sigma;
      const weight = Math.exp(-0.5 * distance * distance);
      sum += weight * value;
      norm += weight;
    }
    out[i] = sum / norm;
  }
  return out;
}

/** One slider for both, 0 … 1: the weight of the average, or a width up to a tenth of the run. */
export function smooth(
  steps: ArrayLike<number>,
  values: ArrayLike<number>,
  kind: Smoothing,
  amount: number,
): Float64Array {
  if (amount <= 0 || values.length < 2) return Float64Array.from(values);
  if (kind === 'ema') return ema(steps, values, Math.min(amount, 0.995));
  const length = steps[steps.length - 1]! - steps[0]!;
  return gaussian(steps, values, amount ** 2 * 0.1 * length);
}

function usualDistance(steps: ArrayLike<number>, values: ArrayLike<number>): number {
  const distances: number[] = [];
  let before = NaN;
  for (let i = 0; i < values.length; i++) {
    if (!Number.isFinite(values[i]!)) continue;
    if (!Number.isNaN(before)) distances.push(steps[i]! - before);
    before = steps[i]!;
  }
  distances.sort((a, b) => a - b);
  return distances[distances.length >> 1] || 1;
}
