// Fewer points that look the same: no chart draws more points than it has pixels.
import type { Points } from './series';

/**
 * Largest triangle three buckets (Steinarsson 2013): of each bucket the point that spans the largest triangle
 * with the one chosen before and the mean of the next bucket. First and last stay. Gaps must be cut before.
 */
export function lttb(points: Points, count: number): Points {
  const n = points.x.length;
  if (n <= count || count < 3) return points;
  const x = new Float64Array(count);
  const y = new Float64Array(count);
  const width = (n - 2) / (count - 2);
  let chosen = 0;
  x[0] = points.x[0]!;
  y[0] = points.y[0]!;
  for (let bucket = 0; bucket < count - 2; bucket++) {
    const from = Math.floor(bucket * width) + 1;
    const to = Math.floor((bucket + 1) * width) + 1;
    const [nextX, nextY] = meanOf(points, to, Math.min(n, Math.floor((bucket + 2) * width) + 1));
    const baseX = points.x[chosen]!;
    const baseY = points.y[chosen]!;
    let largest = -1;
    for (let i = from; i < to; i++) {
      const area = Math.abs((baseX - nextX) * (points.y[i]! - baseY) - (baseX - points.x[i]!) * (nextY - baseY));
      if (area > largest) {
        largest = area;
        chosen = i;
      }
    }
    x[bucket + 1] = points.x[chosen]!;
    y[bucket + 1] = points.y[chosen]!;
  }
  x[count - 1] = points.x[n - 1]!;
  y[count - 1] = points.y[n - 1]!;
  return { x, y };
}

function meanOf(points: Points, from: number, to: number): [number, number] {
  let x = 0;
  let y = 0;
  for (let i = from; i < to; i++) {
    x += points.x[i]!;
    y += points.y[i]!;
  }
  const n = Math.max(1, to - from);
  return [x / n, y / n];
}
