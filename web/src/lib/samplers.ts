// All samplers that a request can set, by the names of llama.cpp's API, with the ranges that a slider needs. What a
// model's defaults are is the server's to say.
import type { Sampling, SamplingValue } from './types';

export interface NumberField {
  kind: 'number';
  name: NumberName;
  /** The ends of the slider; the number beside it takes more. */
  min: number;
  max: number;
  step: number;
  fallback: number;
  integer?: true;
  /** The value that switches it off, where there is one. */
  off?: number;
  /** No slider: the number is not a quantity (a seed), or has no end. */
  bare?: true;
}

export interface ListField {
  kind: 'list';
  name: 'stop' | 'dry_sequence_breakers' | 'samplers';
  fallback: string[];
}

export interface TextField {
  kind: 'text';
  name: 'grammar';
  fallback: string;
}

export interface ChoiceField {
  kind: 'choice';
  name: 'reasoning_effort';
  options: readonly Effort[];
  fallback: '';
}

/** How much a model that thinks should think; the empty one leaves it to the model's template. */
export type Effort = '' | 'none' | 'low' | 'medium' | 'high';
export type Field = NumberField | ListField | TextField | ChoiceField;
export type FieldName = Field['name'];
export type GroupName = 'basic' | 'cutoff' | 'repetition' | 'dry' | 'xtc' | 'dynamic' | 'mirostat' | 'form';

export type NumberName =
  | 'temperature' | 'top_k' | 'top_p' | 'min_p' | 'max_tokens' | 'seed'
  | 'typical_p' | 'top_n_sigma' | 'min_keep'
  | 'repeat_penalty' | 'repeat_last_n' | 'presence_penalty' | 'frequency_penalty'
  | 'dry_multiplier' | 'dry_base' | 'dry_allowed_length' | 'dry_penalty_last_n'
  | 'xtc_probability' | 'xtc_threshold'
  | 'dynatemp_range' | 'dynatemp_exponent'
  | 'mirostat' | 'mirostat_tau' | 'mirostat_eta';

type Extra = Pick<NumberField, 'integer' | 'off' | 'bare'>;
const number = (
  name: NumberName, fallback: number, min: number, max: number, step: number, extra: Extra = {},
): NumberField => ({ kind: 'number', name, fallback, min, max, step, ...extra });
const whole = { integer: true } as const;

export const ORDER = ['penalties', 'dry', 'top_n_sigma', 'top_k', 'typ_p', 'top_p', 'min_p', 'xtc', 'temperature'];

export const GROUPS: readonly { name: GroupName; fields: readonly Field[] }[] = [
  {
    name: 'basic',
    fields: [
      number('temperature', 0.8, 0, 2, 0.05),
      number('top_p', 0.95, 0, 1, 0.01, { off: 1 }),
      number('top_k', 40, 0, 200, 1, { ...whole, off: 0 }),
      number('min_p', 0.05, 0, 1, 0.01, { off: 0 }),
      number('max_tokens', -1, -1, 4096, 1, { ...whole, off: -1 }),
      number('seed', -1, -1, 2 ** 32, 1, { ...whole, bare: true, off: -1 }),
      { kind: 'choice', name: 'reasoning_effort', options: ['', 'none', 'low', 'medium', 'high'], fallback: '' },
    ],
  },
  {
    name: 'repetition',
    fields: [
      number('repeat_penalty', 1, 0.5, 2, 0.01, { off: 1 }),
      number('repeat_last_n', 64, -1, 2048, 1, { ...whole, off: 0 }),
      number('presence_penalty', 0, -2, 2, 0.05, { off: 0 }),
      number('frequency_penalty', 0, -2, 2, 0.05, { off: 0 }),
    ],
  },
  {
    name: 'cutoff',
    fields: [
      number('typical_p', 1, 0, 1, 0.01, { off: 1 }),
      number('top_n_sigma', -1, -1, 5, 0.1, { off: -1 }),
      number('min_keep', 0, 0, 20, 1, { ...whole, off: 0 }),
    ],
  },
  {
    name: 'dry',
    fields: [
      number('dry_multiplier', 0, 0, 5, 0.05, { off: 0 }),
      number('dry_base', 1.75, 1, 4, 0.05),
      number('dry_allowed_length', 2, 1, 20, 1, whole),
      number('dry_penalty_last_n', -1, -1, 4096, 1, { ...whole, off: 0 }),
      { kind: 'list', name: 'dry_sequence_breakers', fallback: ['\n', ':', '"', '*'] },
    ],
  },
  {
    name: 'xtc',
    fields: [
      number('xtc_probability', 0, 0, 1, 0.01, { off: 0 }),
      number('xtc_threshold', 0.1, 0, 0.5, 0.01),
    ],
  },
  {
    name: 'dynamic',
    fields: [number('dynatemp_range', 0, 0, 2, 0.05, { off: 0 }), number('dynatemp_exponent', 1, 0.1, 5, 0.1)],
  },
  {
    name: 'mirostat',
    fields: [
      number('mirostat', 0, 0, 2, 1, { ...whole, off: 0 }),
      number('mirostat_tau', 5, 0.1, 10, 0.1),
      number('mirostat_eta', 0.1, 0.01, 1, 0.01),
    ],
  },
  {
    name: 'form',
    fields: [
      { kind: 'list', name: 'stop', fallback: [] },
      { kind: 'text', name: 'grammar', fallback: '' },
      { kind: 'list', name: 'samplers', fallback: ORDER },
    ],
  },
];

export function same(a: SamplingValue, b: SamplingValue): boolean {
  return Array.isArray(a) && Array.isArray(b) ? JSON.stringify(a) === JSON.stringify(b) : a === b;
}

/** A float32 of the server as a person would write it: 0.05, not 0.05000000074505806. */
export function tidy(value: number): number {
  return Number.isInteger(value) ? value : Number(value.toPrecision(6));
}

/** The default of a field: the server's, or llama.cpp's where it says none. */
export function defaultOf(field: Field, defaults: Sampling): SamplingValue {
  const said = defaults[field.name];
  if (typeof said === 'number' && field.kind === 'number') {
    // llama.cpp writes "a random seed" as the largest number
    return field.name === 'seed' && said >= 2 ** 32 - 1 ? -1 : tidy(said);
  }
  if (field.kind === 'list' && Array.isArray(said)) return said;
  if (field.kind === 'text' && typeof said === 'string') return said;
  return field.fallback;
}

/** The settings with one value changed; a value that is the default is not kept, and so not sent. */
export function changed(sampling: Sampling, field: Field, value: SamplingValue, defaults: Sampling): Sampling {
  const rest = Object.fromEntries(Object.entries(sampling).filter(([name]) => name !== field.name));
  return same(value, defaultOf(field, defaults)) ? rest : { ...rest, [field.name]: value };
}

/** A list as lines: a line break inside a text is written \n. */
export function toLines(list: readonly string[]): string {
  return list.map((text) => text.replaceAll('\\', '\\\\').replaceAll('\n', '\\n').replaceAll('\t', '\\t')).join('\n');
}

/** And back. Empty lines are nothing. */
export function fromLines(lines: string): string[] {
  const signs: Record<string, string> = { n: '\n', t: '\t', '\\': '\\' };
  return lines
    .split('\n')
    .filter((line) => line !== '')
    .map((line) => line.replace(/\\(.)/g, (whole, letter: string) => signs[letter] ?? whole));
}
