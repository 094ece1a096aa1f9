// Languages. English decides which words there are: a table that lacks one is a type error.
import { en } from './en';
import { zh } from './zh';

export type Words = typeof en;
export const tables = { en, zh } satisfies Record<string, Words>;
export type Language = keyof typeof tables;

export function isLanguage(value: unknown): value is Language {
  return typeof value === 'string' && Object.hasOwn(tables, value);
}
