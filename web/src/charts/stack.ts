// Parts of a whole for each step, and their means over several steps.
import type { Range } from './scale';

export interface Stack {
  readonly names: readonly string[];
  readonly colours: readonly string[];
  readonly steps: readonly number[];
  /** parts[i][k]: part i at steps[k]. */
  readonly parts: readonly (readonly number[])[];
}

export interface Bar {
  readonly from: number;
  readonly to: number;
  readonly parts: readonly number[];
}

/** At most `count` bars for the steps of a range; a bar is the mean of the steps that it stands for. */
export function bars({ steps, parts }: Stack, [low, high]: Range, count: number): Bar[] {
  const width = Math.max(1, Math.ceil((high - low + 1) / count));
  const found: { from: number; to: number; sums: number[]; n: number }[] = [];
  for (let k = 0; k < steps.length; k++) {
    const step = steps[k]!;
    if (step < low || step > high) continue;
    const from = Math.floor(step / width) * width;
    let bar = found[found.length - 1];
    if (bar?.from !== from) {
      bar = { from, to: from + width - 1, sums: parts.map(() => 0), n: 0 };
      found.push(bar);
    }
    parts.forEach((part, i) => (bar.sums[i] = bar.sums[i]! + (Number.isFinite(part[k]!) ? part[k]! : 0)));
    bar.n++;
  }
  return found.map(({ from, to, sums, n }) => ({ from, to, parts: sums.map((sum) => sum / n) }));
}
