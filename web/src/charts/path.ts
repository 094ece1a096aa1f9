// Points to SVG paths. A gap in the values is a gap in the line; a lone point between gaps is a dot.
import type { Band, Points } from './series';
import type { Scale } from './scale';

export function linePath({ x, y }: Points, xs: Scale, ys: Scale): string {
  let path = '';
  let drawing = false;
  for (let i = 0; i < x.length; i++) {
    const py = ys.at(y[i]!);
    if (!Number.isFinite(py)) {
      drawing = false;
      continue;
    }
    const lone = !drawing && !Number.isFinite(i + 1 < x.length ? ys.at(y[i + 1]!) : NaN);
    path += `${drawing ? 'L' : 'M'}${fixed(xs.at(x[i]!))} ${fixed(py)}`;
    if (lone) path += 'h0';
    drawing = true;
  }
  return path;
}

/** A closed area between low and high, one for each stretch without gaps. */
export function bandPath({ x, low, high }: Band, xs: Scale, ys: Scale): string {
  let path = '';
  let start = -1;
  for (let i = 0; i <= x.length; i++) {
    const whole = i < x.length && Number.isFinite(low[i]!) && Number.isFinite(high[i]!);
    if (whole && start < 0) start = i;
    if (!whole && start >= 0) {
      path += area(x, low, high, start, i, xs, ys);
      start = -1;
    }
  }
  return path;
}

function area(
  x: ArrayLike<number>,
  low: ArrayLike<number>,
  high: ArrayLike<number>,
  from: number,
  to: number,
  xs: Scale,
  ys: Scale,
): string {
  const bottom = Math.max(ys.range[0], ys.range[1]);
  let upper = '';
  let lower = '';
  for (let i = from; i < to; i++) {
    const px = fixed(xs.at(x[i]!));
    const above = ys.at(high[i]!);
    if (Number.isNaN(above)) continue;
    const below = ys.at(low[i]!);
    upper += `${upper ? 'L' : 'M'}${px} ${fixed(above)}`;
    // on a log scale an interval may reach 0: it ends at the plot's floor
    lower = `L${px} ${fixed(Number.isNaN(below) ? bottom : below)}${lower}`;
  }
  return upper ? `${upper}${lower}Z` : '';
}

function fixed(value: number): string {
  return String(Math.round(Math.max(-1e5, Math.min(1e5, value)) * 10) / 10);
}
