// A rollout's tokens with all that is known of each; and what they can be coloured by.
import { limitOf, type ColourScale } from '../charts/colour';
import type { RolloutRow } from './types';

export interface Token {
  readonly at: number;
  readonly id: number;
  /** Its text; null where the server has no tokenizer: then the id is shown. */
  readonly text: string | null;
  /** Sampled by the model and learnt from. Otherwise: a prompt, a tool's answer, or masked. */
  readonly counted: boolean;
  readonly logprob: number;
  /** The learner's logprob of it before the update. */
  readonly learner: number;
  readonly ratio: number;
  readonly advantage: number;
  readonly entropy: number;
  readonly value: number;
}

export type Quantity = 'advantage' | 'ratio' | 'mismatch' | 'logprob' | 'entropy' | 'value';
export const QUANTITIES: readonly Quantity[] = ['advantage', 'ratio', 'mismatch', 'logprob', 'entropy', 'value'];

/** The answer's tokens (all after the prompt), or with `whole` the prompt's too. */
export function tokensOf(row: RolloutRow, whole = false): Token[] {
  const tokens: Token[] = [];
  for (let at = whole ? 0 : row.prompt_length; at < row.token_ids.length; at++) {
    const counted = row.mask[at] === 1;
    const number = (values: readonly (number | null)[] | undefined): number => (counted ? (values?.[at] ?? NaN) : NaN);
    tokens.push({
      at,
      id: row.token_ids[at]!,
      text: row.tokens?.[at] ?? null,
      counted,
      logprob: number(row.logprobs),
      learner: number(row.learner_logprobs ?? row.old_logprobs),
      ratio: number(row.ratios),
      advantage: number(row.advantages),
      entropy: number(row.entropies),
      value: number(row.old_values),
    });
  }
  return tokens;
}

/** What is drawn: signed for diverging scales. The ratio as its logarithm, so that ½ and 2 are equally strong. */
export function amount(token: Token, quantity: Quantity): number {
  switch (quantity) {
    case 'advantage':
      return token.advantage;
    case 'ratio':
      return Math.log(token.ratio);
    case 'mismatch':
      return token.learner - token.logprob;
    case 'logprob':
      return -token.logprob;
    case 'entropy':
      return token.entropy;
    case 'value':
      return token.value;
  }
}

/** Differences below this are rounding, and are not painted strongly. */
const LEAST: Readonly<Record<Quantity, number>> = {
  advantage: 1e-6,
  ratio: 0.01,
  mismatch: 1e-3,
  logprob: 1,
  entropy: 0.5,
  value: 0.1,
};

export function scaleFor(quantity: Quantity, rows: readonly (readonly Token[])[]): ColourScale {
  const hue = quantity === 'logprob' || quantity === 'entropy' ? 'sequential' : 'diverging';
  return { hue, limit: limitOf(amounts(rows, quantity), LEAST[quantity]) };
}

/** Those that these rollouts have numbers for. */
export function available(rows: readonly (readonly Token[])[]): Quantity[] {
  return QUANTITIES.filter((quantity) => {
    for (const value of amounts(rows, quantity)) if (Number.isFinite(value)) return true;
    return false;
  });
}

function* amounts(rows: readonly (readonly Token[])[], quantity: Quantity): Generator<number> {
  for (const tokens of rows) for (const token of tokens) yield amount(token, quantity);
}

/** Text with what cannot be seen made visible: line ends stay line ends, after a sign. */
export function visible(token: Token): string {
  if (token.text === null) return `⟨${token.id}⟩`;
  if (token.text === '') return '∅';
  return token.text.replace(/\r/g, '␍').replace(/\n/g, '⏎\n').replace(/\t/g, '⇥\t').replace(/\ufffd/g, '▯');
}

/** Rollouts of one problem, the best first; problems in the order in which they appear. */
export function byProblem(rows: readonly RolloutRow[]): RolloutRow[][] {
  const found = new Map<string, RolloutRow[]>();
  for (const row of rows) {
    const group = found.get(row.problem_id);
    if (group) group.push(row);
    else found.set(row.problem_id, [row]);
  }
  return [...found.values()].map((group) => group.sort((a, b) => b.score.total - a.score.total));
}
