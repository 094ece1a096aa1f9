// What belongs to this browser and not to the user: theme, language, key, widths. The only thing kept in
// localStorage; conversations are on the server.
import { isLanguage, type Language } from './locales';

export type Theme = 'system' | 'light' | 'dark';
const NAME = 'etude.settings';

interface Stored {
  theme: Theme;
  language: Language;
  key: string;
  sidebar: boolean;
  tokens: boolean;
  sendOnEnter: boolean;
}

function read(): Partial<Record<keyof Stored, unknown>> {
  try {
    const value: unknown = JSON.parse(localStorage.getItem(NAME) ?? '{}');
    return typeof value === 'object' && value !== null ? value : {};
  } catch {
    return {}; // storage is switched off, or holds what we did not write: the defaults hold
  }
}

function preferredLanguage(): Language {
  return navigator.languages.some((name) => name.toLowerCase().startsWith('zh')) ? 'zh' : 'en';
}

class Settings {
  theme: Theme = $state('system');
  language: Language = $state('en');
  key = $state('');
  /** Whether the list of conversations is shown beside a wide page. */
  sidebar = $state(true);
  /** Whether new answers are asked for with the probability of every token. */
  tokens = $state(false);
  sendOnEnter = $state(true);

  constructor() {
    const stored = read();
    if (stored.theme === 'light' || stored.theme === 'dark') this.theme = stored.theme;
    this.language = isLanguage(stored.language) ? stored.language : preferredLanguage();
    if (typeof stored.key === 'string') this.key = stored.key;
    if (typeof stored.sidebar === 'boolean') this.sidebar = stored.sidebar;
    if (typeof stored.tokens === 'boolean') this.tokens = stored.tokens;
    if (typeof stored.sendOnEnter === 'boolean') this.sendOnEnter = stored.sendOnEnter;
  }

  /** Change some, keep them, show them. */
  set(changed: Partial<Stored>): void {
    Object.assign(this, changed);
    const { theme, language, key, sidebar, tokens, sendOnEnter } = this;
    try {
      localStorage.setItem(NAME, JSON.stringify({ theme, language, key, sidebar, tokens, sendOnEnter }));
    } catch {
      // private windows may refuse; the settings then last as long as the page
    }
    this.apply();
  }

  /** Put theme and language on the document. */
  apply(): void {
    const root = document.documentElement;
    root.lang = this.language === 'zh' ? 'zh-Hans' : 'en';
    if (this.theme === 'system') delete root.dataset['theme'];
    else root.dataset['theme'] = this.theme;
  }

  get dark(): boolean {
    return this.theme === 'system' ? darkPreferred.current : this.theme === 'dark';
  }
}

class DarkPreferred {
  current = $state(false);

  constructor() {
    const query = globalThis.matchMedia?.('(prefers-color-scheme: dark)');
    if (query === undefined) return;
    this.current = query.matches;
    query.addEventListener('change', (event) => (this.current = event.matches));
  }
}

const darkPreferred = new DarkPreferred();
export const settings = new Settings();
