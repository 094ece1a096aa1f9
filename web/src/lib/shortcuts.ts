// Keyboard shortcuts: one table, which the help shows and the pages ask. Keys are those of the place on the keyboard
// (`code`) where Alt changes what is typed.

interface Shortcut {
  /** As they are shown. Mod is Ctrl, on a Mac Command. */
  keys: readonly string[];
  code: string;
  mod?: boolean;
  shift?: boolean;
  alt?: boolean;
  /** Not while something is being typed. */
  outside?: boolean;
  /** Only shown: a text field does it itself. */
  shown?: boolean;
}

export const SHORTCUTS = {
  newChat: { keys: ['Mod', 'Shift', 'O'], code: 'KeyO', mod: true, shift: true },
  search: { keys: ['Mod', 'K'], code: 'KeyK', mod: true },
  sidebar: { keys: ['Mod', 'B'], code: 'KeyB', mod: true },
  settings: { keys: ['Mod', '.'], code: 'Period', mod: true },
  tokens: { keys: ['Alt', 'T'], code: 'KeyT', alt: true },
  focus: { keys: ['/'], code: 'Slash', outside: true },
  send: { keys: ['Enter'], code: 'Enter', shown: true },
  newline: { keys: ['Shift', 'Enter'], code: 'Enter', shown: true },
  stop: { keys: ['Esc'], code: 'Escape' },
  edit: { keys: ['Alt', 'E'], code: 'KeyE', alt: true },
  regenerate: { keys: ['Alt', 'R'], code: 'KeyR', alt: true },
  continue: { keys: ['Alt', 'C'], code: 'KeyC', alt: true },
  previous: { keys: ['Alt', '['], code: 'BracketLeft', alt: true },
  next: { keys: ['Alt', ']'], code: 'BracketRight', alt: true },
  help: { keys: ['?'], code: 'Slash', shift: true, outside: true },
} as const satisfies Record<string, Shortcut>;

export type ShortcutName = keyof typeof SHORTCUTS;

type Pressed = Pick<KeyboardEvent, 'code' | 'key' | 'ctrlKey' | 'metaKey' | 'shiftKey' | 'altKey' | 'target'>;

function typing(target: EventTarget | null): boolean {
  return target instanceof HTMLElement && (target.isContentEditable || /^(INPUT|TEXTAREA|SELECT)$/.test(target.tagName));
}

/** The shortcut that was pressed, if it is one. */
export function pressed(event: Pressed): ShortcutName | null {
  for (const [name, entry] of Object.entries(SHORTCUTS)) {
    const shortcut: Shortcut = entry;
    const mod = event.ctrlKey || event.metaKey;
    // signs are those that were typed: keyboards have them in many places
    const isSign = name === 'focus' || name === 'help';
    const key = isSign ? event.key === shortcut.keys[0] : event.code === shortcut.code;
    const shift = isSign || event.shiftKey === (shortcut.shift ?? false);
    if (!key || !shift || shortcut.shown || mod !== (shortcut.mod ?? false)) continue;
    if (event.altKey !== (shortcut.alt ?? false) || (shortcut.outside && typing(event.target))) continue;
    return name as ShortcutName;
  }
  return null;
}

const isMac = /Mac|iPhone|iPad/.test(globalThis.navigator?.userAgent ?? '');

/** The keys of a shortcut as they are written on this machine's keyboard. */
export function keysOf(name: ShortcutName): string[] {
  const signs: Record<string, string> = isMac ? { Mod: '⌘', Alt: '⌥', Shift: '⇧' } : { Mod: 'Ctrl' };
  return SHORTCUTS[name].keys.map((key) => signs[key] ?? key);
}

/** For a tooltip: "Regenerate (Alt+R)". */
export function withKeys(label: string, name: ShortcutName): string {
  return `${label} (${keysOf(name).join(isMac ? '' : '+')})`;
}
