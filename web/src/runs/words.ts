// The words of the run pages. They are loaded with them; the language is the one of the settings.
import { settings } from '../lib/settings.svelte';
import { en } from './words/en';
import { zh } from './words/zh';

export type RunWords = typeof en;
const tables: Record<'en' | 'zh', RunWords> = { en, zh };

/** Reactive where it is called: in a template or a $derived. */
export function w(): RunWords {
  return tables[settings.language];
}

/** What a panel or a metric is called: in words where they are known, else by its own name. */
export function titleOf(id: string): string {
  const titles: Record<string, string> = w().panels;
  const part = /^reward\/part\/(.+)$/.exec(id)?.[1];
  return titles[id] ?? (part === undefined ? id : `${titles['reward']}: ${part}`);
}
