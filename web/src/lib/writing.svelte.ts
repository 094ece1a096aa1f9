// An answer that is being written: deltas are gathered and shown at most every 40 ms, however fast they come, and
// time is taken. The chat and the compare page both write so.
import { t } from './i18n.svelte';
import { answer, type Asked } from './stream';
import type { Timings, Token } from './types';

const FLUSH_MS = 40;

/** What a writing fills: a message, or a column of the compare page. */
export interface Sheet {
  content: string;
  reasoning: string;
  tokens: Token[];
  timings: Timings | null;
}

export type Ending = 'finished' | 'stopped' | 'failed';

/** Writes an answer onto a sheet, after what it already holds. `flushed` is called after each change of it. */
export class Writing {
  error = $state('');
  readonly #abort = new AbortController();
  readonly #startedMs = performance.now();
  #firstMs: number | null = null;
  #contentMs: number | null = null;
  #pending = { content: '', reasoning: '', tokens: [] as Token[] };
  #timer: ReturnType<typeof setTimeout> | undefined;

  constructor(
    private readonly sheet: Sheet,
    private readonly flushed: () => void = () => undefined,
  ) {}

  stop(): void {
    this.#abort.abort();
  }

  async run(asked: Omit<Asked, 'signal'>): Promise<Ending> {
    let ending: Ending = 'finished';
    try {
      for await (const delta of answer({ ...asked, signal: this.#abort.signal })) {
        if (delta.content !== '' || delta.reasoning !== '') this.#firstMs ??= performance.now();
        if (delta.content !== '') this.#contentMs ??= performance.now();
        this.#pending.content += delta.content;
        this.#pending.reasoning += delta.reasoning;
        this.#pending.tokens.push(...delta.tokens);
        if (delta.timings !== null) this.#time(delta.timings);
        if (delta.finishReason !== null) this.#time({ finish_reason: delta.finishReason });
        this.#timer ??= setTimeout(() => this.#flush(), FLUSH_MS);
      }
    } catch (error) {
      ending = this.#abort.signal.aborted ? 'stopped' : 'failed';
      if (ending === 'stopped') this.#time({ finish_reason: 'stopped' });
      else this.error = error instanceof TypeError ? t().chat.broken : error instanceof Error ? error.message : String(error);
    }
    this.#flush();
    return ending;
  }

  #time(timings: Timings): void {
    this.sheet.timings = {
      ...this.sheet.timings,
      ...timings,
      ...(this.#firstMs === null ? {} : { first_token_ms: Math.round(this.#firstMs - this.#startedMs) }),
      ...(this.#contentMs === null || this.#firstMs === null || this.#contentMs === this.#firstMs
        ? {}
        : { thinking_ms: Math.round(this.#contentMs - this.#firstMs) }),
    };
  }

  #flush(): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    const { content, reasoning, tokens } = this.#pending;
    if (content === '' && reasoning === '' && tokens.length === 0) return;
    this.#pending = { content: '', reasoning: '', tokens: [] };
    this.sheet.content += content;
    this.sheet.reasoning += reasoning;
    if (tokens.length > 0) this.sheet.tokens = [...this.sheet.tokens, ...tokens];
    this.flushed();
  }
}
