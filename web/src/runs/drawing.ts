// From runs, groups and a panel to the series of a chart.
import { meanBand, type Spread } from '../charts/bands';
import { curveColour, curveDash } from '../charts/colour';
import type { Points, Series } from '../charts/series';
import { smooth, type Smoothing } from '../charts/smooth';
import type { Panel } from './catalogue';
import type { Curve, Curves } from './columns';
import type { Group } from './diff';

export interface Drawing {
  readonly smoothing: Smoothing;
  readonly amount: number;
  readonly seeds: Spread | 'lines';
}

export type CurvesOf = (run: string) => Curves;

/** Evaluations come seldom: their points are drawn too, and they are not smoothed. */
const SELDOM = 60;

/** Of one run: a curve for each metric of the panel. Of several: one for each group or run. */
export function seriesOf(panel: Panel, groups: readonly Group[], curves: CurvesOf, drawing: Drawing): Series[] {
  const only = groups.length === 1 && groups[0]!.runs.length === 1 ? groups[0]!.runs[0]! : null;
  if (only !== null) {
    return panel.metrics.flatMap((name, at) => {
      const curve = curves(only)[name];
      if (!curve) return [];
      const look = { id: panel.metrics.length > 1 ? name : only, label: shortName(name, panel.metrics), at };
      return [lineOf(curve, intervalOf(curves(only), name), look, drawing)];
    });
  }
  const name = panel.metrics[0]!;
  return groups.flatMap((group, at) => groupSeries(group, name, at, curves, drawing));
}

function groupSeries(group: Group, name: string, at: number, curves: CurvesOf, drawing: Drawing): Series[] {
  const there = group.runs.flatMap((run) => {
    const curve = curves(run)[name];
    return curve && curve.points.x.length > 0 ? [{ run, curve }] : [];
  });
  if (there.length === 0) return [];
  if (there.length === 1 || drawing.seeds === 'lines') {
    return there.map(({ run, curve }) => {
      const alone = group.runs.length === 1;
      const interval = alone ? intervalOf(curves(run), name) : null;
      return lineOf(curve, interval, { id: alone ? group.label : `${group.label}/${run}`, label: run, at, group: group.label }, drawing);
    });
  }
  const smoothed = there.map(({ curve }) => smoothedLine(curve.points, drawing));
  const { mean, band } = meanBand(smoothed, drawing.seeds);
  const series: Series = { id: group.label, label: group.label, colour: curveColour(at), line: mean, band, count: there.length, dots: isSeldom(mean) };
  return [withDash(series, at)];
}

interface Look {
  readonly id: string;
  readonly label: string;
  readonly at: number;
  readonly group?: string;
}

function lineOf(curve: Curve, interval: Curve['extremes'] | null, { id, label, at, group }: Look, drawing: Drawing): Series {
  const line = smoothedLine(curve.points, drawing);
  const band = interval ?? curve.extremes;
  const series: Series = { id, label, colour: curveColour(at), line, dots: isSeldom(curve.points), ...(group === undefined ? {} : { group }) };
  return withDash({ ...series, ...(band ? { band } : {}), ...(line === curve.points ? {} : { raw: curve.points }) }, at);
}

function withDash(series: Series, at: number): Series {
  const dash = curveDash(at);
  return dash === undefined ? series : { ...series, dash };
}

function smoothedLine(points: Points, { smoothing, amount }: Drawing): Points {
  return amount > 0 && !isSeldom(points) ? { x: points.x, y: smooth(points.x, points.y, smoothing, amount) } : points;
}

/** Points that are mostly more than one step apart, and few. */
function isSeldom({ x }: Points): boolean {
  return x.length <= SELDOM && x.length > 1 && (x[x.length - 1]! - x[0]!) / (x.length - 1) > 2;
}

/** NAME/low and NAME/high as a band. */
function intervalOf(curves: Curves, name: string): Curve['extremes'] | null {
  const low = curves[`${name}/low`]?.points;
  const high = curves[`${name}/high`]?.points;
  return low && high && low.x.length === high.x.length ? { x: low.x, low: low.y, high: high.y } : null;
}

/** What is different in the names of a panel: reward/mean, reward/best → mean, best. */
export function shortName(name: string, all: readonly string[]): string {
  if (all.length < 2) return name;
  const parts = all.map((one) => one.split('/'));
  let shared = 0;
  while (parts.every((one) => shared < one.length - 1 && one[shared] === parts[0]![shared])) shared++;
  return name.split('/').slice(shared).join('/');
}
