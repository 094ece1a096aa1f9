// The routes of the run pages, typed. They only read.
import { api, request } from '../lib/api';
import { events } from './events';
import type { Finding, MetricsPage, MetricsRow, RolloutPage, RunDetail, RunSummary, State } from './types';

function of(name: string): string {
  return `/api/runs/${encodeURIComponent(name)}`;
}

export async function listRuns(signal?: AbortSignal): Promise<RunSummary[]> {
  return (await api.get<{ runs: RunSummary[] }>('/api/runs', signal)).runs;
}

export function runDetail(name: string, signal?: AbortSignal): Promise<RunDetail> {
  return api.get<RunDetail>(of(name), signal);
}

export interface MetricsQuery {
  names: readonly string[];
  after?: number;
  before?: number;
  maxPoints?: number;
}

export function metrics(name: string, query: MetricsQuery, signal?: AbortSignal): Promise<MetricsPage> {
  const search = new URLSearchParams(query.names.map((metric) => ['name', metric]));
  if (query.after !== undefined) search.set('after', String(query.after));
  if (query.before !== undefined) search.set('before', String(query.before));
  search.set('max_points', String(query.maxPoints ?? 1000));
  search.set('extremes', '1');
  return api.get<MetricsPage>(`${of(name)}/metrics?${search}`, signal);
}

export interface RolloutsQuery {
  sort?: 'reward' | 'index' | 'length' | 'problem';
  order?: 'desc' | 'asc';
  offset?: number;
  limit?: number;
  problem?: string;
}

export function rollouts(name: string, step: number, query: RolloutsQuery, signal?: AbortSignal): Promise<RolloutPage> {
  const search = new URLSearchParams();
  for (const [key, value] of Object.entries(query)) if (value !== undefined) search.set(key, String(value));
  return api.get<RolloutPage>(`${of(name)}/rollouts/${step}?${search}`, signal);
}

export interface Live {
  row: (row: MetricsRow) => void;
  finding: (finding: Finding) => void;
  /** The rollouts of a step are stored. */
  rollouts: (step: number) => void;
  state: (state: State) => void;
  /** The run was resumed from a checkpoint: what was shown of later steps is void. */
  reset: () => void;
}

/** What a run writes, as it writes it, until the signal; after a break it goes on from the last row. */
export async function follow(name: string, after: number, live: Live, signal: AbortSignal): Promise<void> {
  let last = after;
  const open = (): Promise<Response> =>
    request(`${of(name)}/events?after=${last}`, { signal, headers: { Accept: 'text/event-stream' } });
  for await (const { event, data } of events(open, signal)) {
    const value: unknown = JSON.parse(data);
    if (event === 'metrics') {
      const row = value as MetricsRow;
      last = row.step;
      live.row(row);
    } else if (event === 'doctor') live.finding(value as Finding);
    else if (event === 'rollouts') live.rollouts((value as { step: number }).step);
    else if (event === 'state') live.state((value as { state: State }).state);
    else if (event === 'reset') live.reset();
  }
}
