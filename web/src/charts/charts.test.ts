import { describe, expect, test } from 'vitest';
import { meanBand, studentT, valueAt } from './bands';
import { background, curveColour, curveDash, limitOf } from './colour';
import { lttb } from './decimate';
import { bytes, duration, exact, short, tickLabels } from './numbers';
import { bandPath, linePath } from './path';
import { domainOf, linear, linearTicks, logTicks, logarithmic, spacing, stepTicks } from './scale';
import { finite, lastBefore, nearest, within } from './series';
import { ema, gaussian, smooth } from './smooth';
import { bars } from './stack';

const range = (n: number): number[] => Array.from({ length: n }, (_, i) => i);

describe('scales', () => {
  test('invert undoes at, linear and logarithmic', () => {
    for (const scale of [linear([-3, 17], [40, 400]), logarithmic([1e-9, 1e-3], [200, 10])]) {
      for (const share of [0, 0.2, 1]) {
        const pixel = scale.range[0] + share * (scale.range[1] - scale.range[0]);
        expect(scale.at(scale.invert(pixel))).toBeCloseTo(pixel, 8);
      }
    }
    expect(logarithmic([1, 10], [0, 1]).at(0)).toBeNaN();
  });

  test('ticks are 1, 2, 5 times a power of ten, inside, without dust', () => {
    expect(spacing(1, 6)).toBe(0.2);
    expect(linearTicks([0, 1], 5)).toEqual([0, 0.2, 0.4, 0.6, 0.8, 1]);
    expect(linearTicks([-0.3, 0.3], 4)).toEqual([-0.2, 0, 0.2]);
    expect(linearTicks([0.1, 0.7], 6)).toEqual([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]);
    expect(stepTicks([0, 3], 8)).toEqual([0, 1, 2, 3]);
    expect(logTicks([1e-8, 1e-2], 4)).toEqual([1e-8, 1e-6, 1e-4, 1e-2]);
    expect(logTicks([1, 50], 6)).toEqual([1, 2, 5, 10, 20, 50]);
  });

  test('a domain holds every value, is never empty, and keeps the ends of shares', () => {
    expect(domainOf([0, 0.95])).toEqual([0, 1]);
    expect(domainOf([])).toEqual([0, 1]);
    expect(domainOf([NaN, Infinity])).toEqual([0, 1]);
    expect(domainOf([5, 5])).toEqual([4.5, 5.5]);
    expect(domainOf([0, 0])).toEqual([0, 1]);
    const [low, high] = domainOf([-2, 8]);
    expect(low).toBeLessThan(-2);
    expect(high).toBeGreaterThan(8);
    expect(domainOf([1, 1.2])[1]).toBeGreaterThan(1.2);
    const [bottom] = domainOf([0, 1e-9, 1e-3], 'log');
    expect(bottom).toBeGreaterThan(0);
  });
});

describe('numbers', () => {
  test('short', () => {
    const cases: [number | null, string][] = [
      [0, '0'], [0.03125, '0.03125'], [12.5, '12.5'], [1234.56, '1235'], [123456, '123k'], [7.2e9, '7.2G'],
      [1.2111e-11, '1.21e−11'], [-0.5, '−0.5'], [null, '–'], [NaN, '–'], [Infinity, '∞'], [99999, '99999'],
    ];
    for (const [value, text] of cases) expect(short(value)).toBe(text);
  });

  test('equal values, but for the dust of floating point, are a level line', () => {
    const [low, high] = domainOf([0.99, 0.99 + 2 ** -52, 0.99 - 2 ** -53]);
    expect(high - low).toBeGreaterThan(0.1);
    expect(linearTicks([0.99, 0.99 + 2 ** -52], 5).length).toBeLessThan(25);
    expect(linearTicks([1e300, 1e300], 5).length).toBeLessThan(25);
  });

  test('labels of one axis have equal decimals', () => {
    expect(tickLabels([0, 0.5, 1])).toEqual(['0.0', '0.5', '1.0']);
    expect(tickLabels([0, 2 ** 31], 'bytes')).toEqual(['0 B', '2 GiB']);
    expect(new Set(tickLabels([1.0895 * 2 ** 30, 1.0898 * 2 ** 30], 'bytes')).size).toBe(2);
    expect(tickLabels([0, 1e-5, 2e-5])).toEqual(['0', '1e−5', '2e−5']);
  });

  test('durations, sizes, exact values', () => {
    expect([8.24, 59.7, 200, 7500, 270000].map(duration)).toEqual(['8.2 s', '60 s', '3 min 20 s', '2 h 05 min', '3 d 03 h']);
    expect(duration(null)).toBe('–');
    expect(bytes(5134995456)).toBe('4.78 GiB');
    expect(exact(0.1234567)).toBe('0.123457');
    expect(exact(1234567)).toBe('1234567');
  });
});

describe('smoothing', () => {
  test('an average of the past begins at the first value, keeps a constant, and is what the formula says', () => {
    for (const value of ema(range(4), [7, 7, 7, 7], 0.9)) expect(value).toBeCloseTo(7, 12);
    const [first, second] = ema([0, 1], [0, 1], 0.5);
    expect(first).toBe(0);
    expect(second).toBeCloseTo(1 / 1.5, 12); // (0.5·0 + 1) / (0.5 + 1): debiased
    expect([...ema(range(3), [1, 2, 3], 0)]).toEqual([1, 2, 3]);
  });

  test('steps that are ten apart are smoothed as much as steps that are one apart', () => {
    const values = [1, 5, 2, 8];
    expect([...ema([0, 10, 20, 30], values, 0.7)]).toEqual([...ema(range(4), values, 0.7)]);
  });

  test('gaps stay gaps and do not spread', () => {
    const out = ema(range(4), [1, NaN, 3, Infinity], 0.5);
    expect([...out].map(Number.isNaN)).toEqual([false, true, false, true]);
    expect([...gaussian(range(3), [1, NaN, 1], 1)]).toEqual([1, NaN, 1]);
  });

  test('a gaussian keeps constants and straight lines away from the ends', () => {
    expect(gaussian(range(21), range(21), 2)[10]).toBeCloseTo(10, 10);
    expect([...smooth(range(3), [1, 2, 3], 'gaussian', 0)]).toEqual([1, 2, 3]);
  });
});

describe('bands', () => {
  test('mean and range of three seeds', () => {
    const runs = [[0, 1], [1, 2], [2, 6]].map((y) => ({ x: [0, 10], y }));
    const { mean, band, counts } = meanBand(runs, 'range');
    expect([...(mean.y as Float64Array)]).toEqual([1, 3]);
    expect([...(band.low as Float64Array)]).toEqual([0, 1]);
    expect([...(band.high as Float64Array)]).toEqual([2, 6]);
    expect([...counts]).toEqual([3, 3]);
  });

  test('the 95 % interval of 1, 2, 3 is 2 ± 4.303/√3', () => {
    const runs = [1, 2, 3].map((value) => ({ x: [5], y: [value] }));
    const { band } = meanBand(runs, 'interval');
    expect(band.low[0]).toBeCloseTo(2 - 4.303 / Math.sqrt(3), 9);
    expect(studentT(60)).toBeCloseTo(2.0, 2);
  });

  test('a run that has ended takes no part any more; steps between points are interpolated', () => {
    const { mean, counts } = meanBand([{ x: [0, 2], y: [0, 2] }, { x: [0, 1, 2, 3], y: [0, 3, 4, 9] }], 'range');
    expect([...(mean.y as Float64Array)]).toEqual([0, 2, 3, 9]);
    expect([...counts]).toEqual([2, 2, 2, 1]);
    expect(valueAt({ x: [0, 2], y: [0, 2] }, 3)).toBeNaN();
  });
});

describe('points', () => {
  test('nearest and lastBefore', () => {
    expect([-1, 0, 4, 5, 99].map((value) => lastBefore([0, 5, 10], value))).toEqual([-1, 0, 0, 1, 2]);
    expect([-1, 2, 3, 99].map((value) => nearest([0, 5, 10], value))).toEqual([0, 0, 1, 2]);
    expect(nearest([], 1)).toBe(-1);
  });

  test('a part of a curve reaches one point over each edge', () => {
    expect(within({ x: range(10), y: range(10) }, [3.5, 5.5])).toEqual({ x: [3, 4, 5, 6], y: [3, 4, 5, 6] });
    expect(finite({ x: [0, 1, 2], y: [1, NaN, 3] }).x).toEqual(new Float64Array([0, 2]));
  });

  test('lttb keeps ends and a lone spike', () => {
    const y = range(5000).map((i) => (i === 2345 ? 100 : Math.sin(i / 50)));
    const thin = lttb({ x: range(5000), y }, 200);
    expect(thin.x.length).toBe(200);
    expect([thin.x[0], thin.x[199]]).toEqual([0, 4999]);
    expect(Math.max(...Array.from(thin.y))).toBe(100);
    expect(Array.from(thin.x)).toEqual(Array.from(thin.x).sort((a, b) => a - b));
  });

  test('paths: a gap moves, a lone point is a dot, a band on a log scale ends at the floor', () => {
    const xs = linear([0, 4], [0, 40]);
    const ys = linear([0, 1], [10, 0]);
    expect(linePath({ x: range(5), y: [0, 1, NaN, 0.5, NaN] }, xs, ys)).toBe('M0 10L10 0M30 5h0');
    const band = { x: [0, 1], low: [0, 0], high: [1, 1] };
    expect(bandPath(band, xs, ys)).toBe('M0 0L10 0L10 10L0 10Z');
    expect(bandPath(band, xs, logarithmic([0.1, 1], [10, 0]))).toBe('M0 0L10 0L10 10L0 10Z');
  });

  test('bars are means of the steps that they stand for', () => {
    const stack = { names: ['a', 'b'], colours: [], steps: range(10), parts: [range(10), range(10).map(() => 1)] };
    expect(bars(stack, [0, 9], 5).map(({ from, to, parts }) => [from, to, ...parts])).toEqual([
      [0, 1, 0.5, 1], [2, 3, 2.5, 1], [4, 5, 4.5, 1], [6, 7, 6.5, 1], [8, 9, 8.5, 1],
    ]);
    expect(bars(stack, [4, 6], 50).length).toBe(3);
  });
});

describe('colours', () => {
  test('signs have different hues, 0 and nothing have none, beyond the limit is as at it', () => {
    const scale = { hue: 'diverging', limit: 2 } as const;
    expect(background(0, scale)).toBe('');
    expect(background(NaN, scale)).toBe('');
    expect(background(2, scale)).not.toBe(background(-2, scale));
    expect(background(50, scale)).toBe(background(2, scale));
    expect(background(0.5, scale)).not.toBe(background(2, scale));
  });

  test('one wild value of a hundred does not set the limit; noise is not blown up', () => {
    expect(limitOf([...range(200).map(() => 1), 1e6])).toBe(1);
    expect(limitOf([1e-9, -1e-9], 1e-3)).toBe(1e-3);
    expect(limitOf([])).toBe(1);
  });

  test('after a round of the palette come dashes', () => {
    expect(curveColour(8)).toBe(curveColour(0));
    expect(curveDash(0)).toBeUndefined();
    expect(curveDash(8)).toBeDefined();
  });
});
