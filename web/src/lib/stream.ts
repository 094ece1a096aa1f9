// One answer of /v1/chat/completions as it comes: text, thoughts, tokens with their probabilities, timings.
import { ApiFailure, request } from './api';
import { t } from './i18n.svelte';
import { events } from './sse';
import type { Sampling, Timings, Token } from './types';

export interface Turn {
  role: 'system' | 'user' | 'assistant';
  content: string;
  reasoning_content?: string;
}

export interface Asked {
  model?: string | undefined;
  messages: Turn[];
  sampling: Sampling;
  /** How many alternatives to record for each token; null: none are recorded. */
  alternatives: number | null;
  signal: AbortSignal;
}

/** What an event adds. */
export interface Delta {
  content: string;
  reasoning: string;
  tokens: Token[];
  timings: Timings | null;
  finishReason: string | null;
}

interface TokenEntry {
  token: string;
  bytes?: number[] | null;
  logprob: number;
  top_logprobs?: TokenEntry[];
}

interface Chunk {
  error?: { message?: string; code?: number | string };
  choices?: {
    delta?: { content?: string | null; reasoning_content?: string | null };
    logprobs?: { content?: TokenEntry[] | null } | null;
    finish_reason?: string | null;
  }[];
  timings?: Timings;
}

/** Where a character has several tokens, their bytes are shown: \xE4. */
export function tokenText(entry: Pick<TokenEntry, 'token' | 'bytes'>): string {
  if (!entry.token.includes('\uFFFD') || !entry.bytes) return entry.token;
  return entry.bytes.map((byte) => `\\x${byte.toString(16).toUpperCase().padStart(2, '0')}`).join('');
}

const rounded = (logprob: number): number => Math.round(logprob * 1e4) / 1e4;

function tokenOf(entry: TokenEntry): Token {
  const top = (entry.top_logprobs ?? []).map((each): [string, number] => [tokenText(each), rounded(each.logprob)]);
  return [tokenText(entry), rounded(entry.logprob), top];
}

/** What a chunk adds. ApiFailure if it says that the answer failed. */
export function deltaOf(chunk: Chunk): Delta {
  if (chunk.error) throw new ApiFailure(500, chunk.error.message ?? 'the answer failed');
  const choice = chunk.choices?.[0];
  return {
    content: choice?.delta?.content ?? '',
    reasoning: choice?.delta?.reasoning_content ?? '',
    tokens: (choice?.logprobs?.content ?? []).map(tokenOf),
    timings: chunk.timings ?? null,
    finishReason: choice?.finish_reason ?? null,
  };
}

/** The request's body: samplers only as far as they differ from the model's defaults. */
export function bodyOf({ model, messages, sampling, alternatives }: Omit<Asked, 'signal'>): object {
  return {
    ...(model === undefined ? {} : { model }),
    messages,
    ...sampling,
    ...(alternatives === null ? {} : { logprobs: true, top_logprobs: alternatives }),
    stream: true,
    stream_options: { include_usage: true },
    timings_per_token: true,
  };
}

/** The deltas of an answer. ApiFailure, also where it breaks off; DOMException AbortError when `signal` ends it. */
export async function* answer(asked: Asked): AsyncGenerator<Delta> {
  const response = await request('/v1/chat/completions', {
    method: 'POST',
    headers: { 'Content-Type': 'application/json' },
    body: JSON.stringify(bodyOf(asked)),
    signal: asked.signal,
  });
  let ended = false;
  for await (const chunk of events(response)) {
    const delta = deltaOf(chunk as Chunk);
    ended ||= delta.finishReason !== null;
    yield delta;
  }
  if (!ended) throw new ApiFailure(0, t().chat.broken);
}
