// The routes of the run pages, typed. They only read.
import { api, request } from '../lib/api';
import { events } from './events';
import type { Columns, Finding, MetricsRow, RolloutPage, RunDetail, RunSummary, StateEvent } from './types';

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

export function metrics(name: string, query: MetricsQuery, signal?: AbortSignal): Promise<Columns> {
  const search = new URLSearchParams(query.names.map((metric) => ['names', metric]));
  if (query.after !== undefined) search.set('after', String(query.after));
  if (query.before !== undefined) search.set('before', String(query.before));
  search.set('max_points', String(query.maxPoints ?? 1000));
  return api.get<Columns>(`${of(name)}/metrics?${search}`, signal);
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
  state: (state: StateEvent) => void;
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
    } else if (event === 'finding') live.finding(value as Finding);
    else if (event === 'state') live.state(value as StateEvent);
  }
}
