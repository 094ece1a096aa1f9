// The words of the page in the language of the settings: `t().chat.send`. Numbers and dates by Intl.
import { tables, type Words } from './locales';
import { settings } from './settings.svelte';

/** The words. Reactive where it is called: in a template or a $derived. */
export function t(): Words {
  return tables[settings.language];
}

/** The tag of the language, for Intl. */
export function locale(): string {
  return settings.language === 'zh' ? 'zh-Hans' : 'en';
}
