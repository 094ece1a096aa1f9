// What a chart draws: named curves over steps, each with an optional band around it.
/** Two columns of equal length, x ascending. */
export interface Points {
  readonly x: ArrayLike<number>;
  readonly y: ArrayLike<number>;
}

export interface Band {
  readonly x: ArrayLike<number>;
  readonly low: ArrayLike<number>;
  readonly high: ArrayLike<number>;
}

export interface Series {
  /** Unique in a chart; what legend toggles remember. */
  readonly id: string;
  readonly label: string;
  readonly colour: string;
  /** The curve as drawn (smoothed). */
  readonly line: Points;
  /** The values themselves, faint behind it, where they differ from the line. */
  readonly raw?: Points;
  /** Seeds, an interval, or the extremes of bins. */
  readonly band?: Band;
  /** What hides it together with others: its group of runs. */
  readonly group?: string;
  /** Runs behind a mean. */
  readonly count?: number;
  readonly dash?: string;
  /** Few, far points are drawn as dots too. */
  readonly dots?: boolean;
}

/** A vertical mark: something happened at this step. */
export interface Mark {
  readonly step: number;
  readonly label: string;
  readonly kind: 'finding' | 'checkpoint';
  readonly id: string;
}

/** Index of the last x ≤ value; −1 before the first. */
export function lastBefore(x: ArrayLike<number>, value: number): number {
  let low = 0;
  let high = x.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (x[middle]! <= value) low = middle + 1;
    else high = middle;
  }
  return low - 1;
}

/** Index of the x nearest to a value; −1 if there is none. */
export function nearest(x: ArrayLike<number>, value: number): number {
  if (x.length === 0) return -1;
  const before = lastBefore(x, value);
  if (before < 0) return 0;
  if (before === x.length - 1) return before;
  return value - x[before]! <= x[before + 1]! - value ? before : before + 1;
}

/** Without the points that have no value. */
export function finite(points: Points): Points {
  let count = 0;
  for (let i = 0; i < points.y.length; i++) if (Number.isFinite(points.y[i]!)) count++;
  if (count === points.y.length) return points;
  const x = new Float64Array(count);
  const y = new Float64Array(count);
  for (let i = 0, k = 0; i < points.y.length; i++) {
    if (!Number.isFinite(points.y[i]!)) continue;
    x[k] = points.x[i]!;
    y[k++] = points.y[i]!;
  }
  return { x, y };
}

/** The part inside a range of x, with one point more on each side so that lines reach the edges. */
export function within(points: Points, [low, high]: readonly [number, number]): Points {
  const from = Math.max(0, lastBefore(points.x, low));
  const to = Math.min(points.x.length, lastBefore(points.x, high) + 2);
  if (from === 0 && to === points.x.length) return points;
  return { x: Array.prototype.slice.call(points.x, from, to), y: Array.prototype.slice.call(points.y, from, to) };
}

/** First and last x of all curves; null when there is no point. */
export function stepsOf(series: readonly Series[]): [number, number] | null {
  let low = Infinity;
  let high = -Infinity;
  for (const { line } of series) {
    if (line.x.length === 0) continue;
    low = Math.min(low, line.x[0]!);
    high = Math.max(high, line.x[line.x.length - 1]!);
  }
  return low <= high ? [low, high] : null;
}

/** All values that must be visible between two steps: lines, bands, and (unless smoothed strongly) raw values. */
export function* valuesBetween(series: readonly Series[], low: number, high: number): Generator<number> {
  for (const { line, raw, band } of series) {
    yield* inside(line.x, line.y, low, high);
    if (raw) yield* inside(raw.x, raw.y, low, high);
    if (band) {
      yield* inside(band.x, band.low, low, high);
      yield* inside(band.x, band.high, low, high);
    }
  }
}

function* inside(x: ArrayLike<number>, y: ArrayLike<number>, low: number, high: number): Generator<number> {
  for (let i = Math.max(0, lastBefore(x, low)); i < x.length && x[i]! <= high; i++) {
    if (x[i]! >= low) yield y[i]!;
  }
}
