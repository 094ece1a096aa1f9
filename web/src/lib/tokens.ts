// Tokens as they are shown: colours by probability, blanks that can be seen, perplexity.
import type { Token } from './types';

/** 0 (hardly likely) to 9 (as good as certain). */
export function bucket(logprob: number): number {
  return Math.min(9, Math.max(0, Math.floor(10 * Math.exp(logprob))));
}

/** A token's text with what would not be seen: line breaks and tabs as signs; no text at all (end) as a sign. */
export function visible(text: string): string {
  if (text === '') return '∎';
  return text.replace(/\r?\n/g, '↵').replace(/\t/g, '⇥');
}

/** exp of the mean surprise; 1 for no tokens. */
export function perplexity(tokens: readonly Token[]): number {
  if (tokens.length === 0) return 1;
  return Math.exp(-tokens.reduce((sum, [, logprob]) => sum + Math.max(logprob, -100), 0) / tokens.length);
}

const BYTES = /^(?:\\x[0-9A-F]{2})+$/;

/** Whether a token is a part of a character only, shown as bytes. */
export function isPart(text: string): boolean {
  return BYTES.test(text);
}

/** The text that the first `n` tokens spell, as it stands in `content`; null if that is no whole text, or another. */
export function textBefore(tokens: readonly Token[], n: number, content: string): string | null {
  const encoder = new TextEncoder();
  const bytes = tokens.slice(0, n).flatMap(([text]) =>
    isPart(text) ? [...text.matchAll(/\\x(..)/g)].map(([, hex]) => parseInt(hex ?? '', 16)) : [...encoder.encode(text)],
  );
  try {
    const text = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(new Uint8Array(bytes));
    return content.trimStart().startsWith(text.trimStart()) ? text : null;
  } catch {
    return null;
  }
}
