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
