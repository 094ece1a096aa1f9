// One run as the pages see it: what it is, its curves, and what comes while it trains.
import type { Range } from '../charts/scale';
import { follow, metrics, runDetail } from './api';
import { ends } from './catalogue';
import { curvesOf, withRows, type Curves } from './columns';
import type { MetricsRow, RunDetail } from './types';

/** Points of a curve that are asked for: more than a chart of half a screen has pixels. */
export const MAX_POINTS = 800;
const GATHER_MS = 200;

export class Run {
  detail: RunDetail | null = $state.raw(null);
  names: readonly string[] = $state.raw([]);
  failure: string | null = $state(null);
  /** Curves over all steps; those of a part of them, while one is zoomed into a run that is binned. */
  #whole: Curves = $state.raw({});
  #part: { range: Range; curves: Curves } | null = $state.raw(null);
  readonly #asked = new Set<string>();
  readonly #gone = new AbortController();
  #waiting: MetricsRow[] = [];
  #recent: MetricsRow[] = [];
  #generation: number | null = null;
  #catching = false;
  #timer: ReturnType<typeof setTimeout> | undefined;

  constructor(readonly name: string) {}

  get curves(): Curves {
    return this.#part?.curves ?? this.#whole;
  }

  get live(): boolean {
    return this.detail?.state === 'running';
  }

  /** The step of the last row. */
  get step(): number {
    return Math.max(this.detail?.step ?? 0, this.#drawn);
  }

  /** The last step that the curves have. */
  get #drawn(): number {
    return Math.max(0, ...Object.values(this.#whole).map(({ points }) => points.x[points.x.length - 1] ?? 0));
  }

  async load(): Promise<void> {
    try {
      this.detail = await runDetail(this.name, this.#gone.signal);
      this.names = this.detail.metric_names;
    } catch (error) {
      if (!this.#gone.signal.aborted) this.failure = error instanceof Error ? error.message : String(error);
    }
  }

  /** Fetch curves that are not there yet, and the intervals around them. */
  async want(names: readonly string[]): Promise<void> {
    const missing = this.#withEnds(names).filter((name) => !this.#asked.has(name) && this.names.includes(name));
    if (missing.length === 0) return;
    for (const name of missing) this.#asked.add(name);
    try {
      const query = { names: missing, maxPoints: MAX_POINTS };
      const columns = await metrics(this.name, query, this.#gone.signal);
      // what came while this was under way may be newer than it
      const end = columns.step[columns.step.length - 1] ?? -1;
      const newer = this.#recent.filter(({ step }) => step > end);
      this.#whole = { ...this.#whole, ...withRows(curvesOf(columns), newer) };
    } catch (error) {
      for (const name of missing) this.#asked.delete(name);
      if (!this.#gone.signal.aborted) this.failure = error instanceof Error ? error.message : String(error);
    }
  }

  /** Finer curves of a part of a long run; null: all steps again. */
  async zoom(range: Range | null): Promise<void> {
    if (range === null || this.step <= MAX_POINTS) {
      this.#part = null;
      return;
    }
    const [low, high] = [Math.floor(range[0]), Math.ceil(range[1])];
    // with a margin, so that smoothing and lines do not begin at the edge
    const margin = Math.ceil((high - low) * 0.25);
    const query = {
      names: [...this.#asked],
      after: Math.max(-1, low - margin - 1),
      before: high + margin + 1,
      maxPoints: MAX_POINTS,
    };
    try {
      const columns = await metrics(this.name, query, this.#gone.signal);
      this.#part = { range, curves: { ...this.#whole, ...curvesOf(columns) } };
    } catch {
      this.#part = null; // the coarse curves are still true
    }
  }

  /** Take what the run writes from now on, until the function that this gives is called. */
  follow(): () => void {
    const stop = new AbortController();
    void follow(
      this.name,
      this.step,
      {
        row: (row) => this.#gather(row),
        finding: (finding) => {
          const { detail } = this;
          if (!detail || detail.findings.some(({ step, sign }) => step === finding.step && sign === finding.sign)) return;
          this.detail = { ...detail, findings: [...detail.findings, finding] };
        },
        state: (now) => {
          const { detail } = this;
          if (!detail) return;
          // with a new state come checkpoints, the final model: what the folder has gained meanwhile
          if (detail.state !== now.state || (this.#generation !== null && this.#generation !== now.generation)) void this.load();
          this.#generation = now.generation;
          const stored = now.rollout_step;
          if (stored === null || detail.rollout_steps.includes(stored)) return;
          this.detail = { ...detail, rollout_steps: [...detail.rollout_steps.filter((step) => step < stored), stored] };
        },
      },
      AbortSignal.any([stop.signal, this.#gone.signal]),
    ).catch(() => undefined); // a refusal: the page shows what there is
    return () => stop.abort();
  }

  /** The same by asking now and then, for runs beyond those whose events are followed. A failure waits for the next. */
  async catchUp(): Promise<void> {
    if (this.#asked.size === 0 || this.#catching) return;
    this.#catching = true;
    try {
      await this.#ask();
      const detail = await runDetail(this.name, this.#gone.signal);
      const step = Math.max(this.detail?.step ?? 0, detail.step ?? 0);
      this.detail = { ...detail, step };
    } catch {
      // the server is away, or the page is
    } finally {
      this.#catching = false;
    }
  }

  async #ask(): Promise<void> {
    const query = { names: [...this.#asked], after: this.#drawn, maxPoints: 100_000 };
    const columns = await metrics(this.name, query, this.#gone.signal);
    columns.step.forEach((step, at) => {
      const row: MetricsRow = { step };
      for (const [name, values] of Object.entries(columns)) if (name !== 'step') row[name] = values[at] ?? null;
      this.#gather(row);
    });
  }

  close(): void {
    this.#gone.abort();
    clearTimeout(this.#timer);
  }

  /** Rows that come fast (after a break, all at once) are drawn together. */
  #gather(row: MetricsRow): void {
    this.#waiting.push(row);
    this.#timer ??= setTimeout(() => this.#take(), GATHER_MS);
  }

  #take(): void {
    const rows = this.#waiting;
    this.#waiting = [];
    this.#timer = undefined;
    const known = new Set(this.names);
    const fresh = rows.flatMap((row) => Object.keys(row)).filter((name) => name !== 'step' && !known.has(name));
    if (fresh.length > 0) this.names = [...new Set([...this.names, ...fresh])];
    for (const name of fresh) this.#asked.add(name);
    // metrics that nobody asked for would be a curve without its beginning
    const wanted = rows.map((row) =>
      Object.fromEntries(Object.entries(row).filter(([name]) => name === 'step' || this.#asked.has(name))),
    ) as MetricsRow[];
    this.#whole = withRows(this.#whole, wanted);
    this.#recent = [...this.#recent, ...wanted].slice(-100);
    const detail = this.detail;
    if (detail) this.detail = { ...detail, step: rows[rows.length - 1]!.step };
  }

  #withEnds(names: readonly string[]): string[] {
    return names.flatMap((name) => [name, ...(ends(name, this.names) ?? [])]);
  }
}

