// Numbers to pixels, and where the ticks stand. Pure; both axes of every chart use it.
export type ScaleKind = 'linear' | 'log';

export interface Scale {
  readonly kind: ScaleKind;
  /** Lowest and highest value. */
  readonly domain: readonly [number, number];
  /** Their pixels. */
  readonly range: readonly [number, number];
  /** Value → pixel; NaN where a log scale has no place for it. */
  at(value: number): number;
  /** Pixel → value. */
  invert(pixel: number): number;
}

export type Range = readonly [number, number];

export function linear(domain: Range, range: Range): Scale {
  const [low, high] = domain;
  const [from, to] = range;
  const span = high - low || 1;
  return {
    kind: 'linear',
    domain,
    range,
    at: (value) => from + ((value - low) / span) * (to - from),
    invert: (pixel) => low + ((pixel - from) / (to - from || 1)) * span,
  };
}

/** The domain must be positive: `domainOf` with 'log' sees to it. */
export function logarithmic(domain: Range, range: Range): Scale {
  const inner = linear([Math.log10(domain[0]), Math.log10(domain[1])], range);
  return {
    kind: 'log',
    domain,
    range,
    at: (value) => (value > 0 ? inner.at(Math.log10(value)) : NaN),
    invert: (pixel) => 10 ** inner.invert(pixel),
  };
}

export function scaleOf(kind: ScaleKind, domain: Range, range: Range): Scale {
  return kind === 'log' ? logarithmic(domain, range) : linear(domain, range);
}

/** 1, 2 or 5 times a power of ten, so that at most `count` of them lie in a length. */
export function spacing(length: number, count: number): number {
  if (!(length > 0) || !Number.isFinite(length)) return 1;
  const power = 10 ** Math.floor(Math.log10(length / count));
  for (const factor of [1, 2, 5, 10]) {
    if (factor * power * count >= length * (1 - 1e-9)) return factor * power;
  }
  return 10 * power;
}

export function linearTicks([low, high]: Range, count: number): number[] {
  const step = spacing(high - low, count);
  const first = Math.ceil(low / step - 1e-9);
  const last = Math.floor(high / step + 1e-9);
  // not by counting k up: beyond 2 ** 53 it would stay where it is
  const n = Math.min(last - first + 1, 4 * count + 4);
  return n > 0 ? Array.from({ length: n }, (_, i) => rounded((first + i) * step, step)) : [];
}

/** Powers of ten (every second, third … where there are many); within two decades also 2 and 5. */
export function logTicks([low, high]: Range, count: number): number[] {
  const first = Math.ceil(Math.log10(low) - 1e-9);
  const last = Math.floor(Math.log10(high) + 1e-9);
  const decades = last - first + 1;
  if (decades < 1) return linearTicks([low, high], count);
  const stride = Math.max(1, Math.ceil(decades / count));
  const factors = decades <= 2 && count >= 4 ? [1, 2, 5] : [1];
  const ticks: number[] = [];
  for (let power = first - 1; power <= last; power++) {
    if ((power - first) % stride !== 0) continue;
    for (const factor of factors) {
      const value = Number((factor * 10 ** power).toPrecision(3));
      if (value >= low * (1 - 1e-9) && value <= high * (1 + 1e-9)) ticks.push(value);
    }
  }
  return ticks;
}

export function ticksOf(scale: Scale, count: number): number[] {
  return scale.kind === 'log' ? logTicks(scale.domain, count) : linearTicks(scale.domain, count);
}

/** Whole steps only: a run has no step 2.5. */
export function stepTicks(domain: Range, count: number): number[] {
  return linearTicks(domain, count).filter(Number.isInteger);
}

/**
 * A domain that holds all values, with a little room (5 % on each side) and never empty.
 * Values between 0 and 1 that fill most of it keep these ends, so that shares look like shares.
 */
export function domainOf(values: Iterable<number>, kind: ScaleKind = 'linear'): Range {
  let low = Infinity;
  let high = -Infinity;
  for (const value of values) {
    if (!Number.isFinite(value) || (kind === 'log' && value <= 0)) continue;
    if (value < low) low = value;
    if (value > high) high = value;
  }
  if (low > high) return kind === 'log' ? [0.1, 10] : [0, 1];
  if (high - low <= Math.max(Math.abs(low), Math.abs(high)) * 1e-9) high = low; // the dust of floating point is no span
  if (kind === 'log') return low === high ? [low / 3, high * 3] : widenedLog(low, high);
  return widened(low, high);
}

function widened(low: number, high: number): Range {
  if (low === high) {
    const room = Math.abs(low) * 0.1 || 1;
    return low === 0 ? [0, 1] : [low - room, high + room];
  }
  const room = (high - low) * 0.05;
  const bottom = low >= 0 && low - room * 2 < 0 ? 0 : low - room;
  const top = high <= 1 && low >= 0 && high > 0.9 ? 1 : high + room;
  return [bottom, Math.max(top, high + (top === 1 ? 0 : room))];
}

function widenedLog(low: number, high: number): Range {
  const room = (high / low) ** 0.05;
  return [low / room, high * room];
}

/** k · step without the dust of floating point. */
function rounded(value: number, step: number): number {
  const digits = Math.max(0, 1 - Math.floor(Math.log10(step)));
  const clean = Number(value.toFixed(Math.min(digits, 20)));
  return clean === 0 ? 0 : clean;
}
