// Two answers to one prompt, each by a model of its own. Nothing of it is kept.
import { ALTERNATIVES } from './chat.svelte';
import { session } from './session.svelte';
import { settings } from './settings.svelte';
import type { Turn } from './stream';
import type { Sampling, Timings, Token } from './types';
import { Writing } from './writing.svelte';

/** One side: a model and its answer. */
export class Column {
  model: string | undefined = $state();
  content = $state('');
  reasoning = $state('');
  timings: Timings | null = $state.raw(null);
  tokens: Token[] = $state.raw([]);
  error = $state('');
  work: Writing | null = $state.raw(null);

  async run(messages: Turn[], sampling: Sampling): Promise<void> {
    this.content = this.reasoning = this.error = '';
    this.timings = null;
    this.tokens = [];
    this.work = new Writing(this);
    await this.work.run({ model: this.model, messages, sampling, alternatives: settings.tokens ? ALTERNATIVES : null });
    this.error = this.work.error;
    this.work = null;
    void session.refreshModels(false, this.model);
  }
}

export class Comparison {
  prompt = $state('');
  system = $state('');
  sampling: Sampling = $state.raw({});
  columns: [Column, Column] = $state.raw([new Column(), new Column()]);
  readonly running: boolean = $derived(this.columns.some(({ work }) => work !== null));

  /** Models that were not chosen yet: the first two, or those that the address names. */
  choose(left: string | null, right: string | null): void {
    const [first, second] = session.models;
    this.columns[0].model ??= left ?? first?.id;
    this.columns[1].model ??= right ?? second?.id ?? first?.id;
  }

  async run(): Promise<void> {
    const system = this.system.trim();
    const messages: Turn[] = [
      ...(system === '' ? [] : [{ role: 'system', content: system } as const]),
      { role: 'user', content: this.prompt.trim() },
    ];
    await Promise.all(this.columns.map((column) => column.run(messages, this.sampling)));
  }

  stop(): void {
    for (const column of this.columns) column.work?.stop();
  }

  swap(): void {
    this.columns = [this.columns[1], this.columns[0]];
  }
}

export const comparison = new Comparison();
