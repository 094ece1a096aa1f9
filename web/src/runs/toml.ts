// The settings of a run (TOML) as flat lines, to be read and compared: `optimizer.learning_rate` → `1e-5`.
//
// It reads what Etude writes and what people write by hand: comments, tables, arrays of tables, quoted and dotted
// keys, strings of several lines, lists over several lines. Values stay text; only their form is made equal.

export interface Setting {
  /** Table and key, joined by dots. */
  readonly path: string;
  readonly table: string;
  readonly key: string;
  readonly value: string;
}

export function settingsOf(text: string): Setting[] {
  const found: Setting[] = [];
  const counts = new Map<string, number>();
  let table = '';
  for (const line of logicalLines(text)) {
    const header = /^\[(\[)?(.+?)\]?\]$/.exec(line);
    if (header && !line.includes('=')) {
      const name = keysOf(header[2]!).join('.');
      const count = counts.get(name) ?? 0;
      counts.set(name, count + 1);
      table = header[1] ? `${name}[${count}]` : name;
      continue;
    }
    const at = equalsSign(line);
    if (at < 0) continue;
    const keys = keysOf(line.slice(0, at));
    const key = keys.join('.');
    found.push({ path: table ? `${table}.${key}` : key, table, key, value: canonical(line.slice(at + 1)) });
  }
  return found;
}

/** Lines without comments; those that belong to one value are joined. */
function* logicalLines(text: string): Generator<string> {
  let line = '';
  let depth = 0;
  let at = 0;
  while (at < text.length) {
    const quoted = stringAt(text, at);
    if (quoted > at) {
      line += text.slice(at, quoted);
      at = quoted;
      continue;
    }
    const character = text[at++]!;
    if (character === '#') {
      while (at < text.length && text[at] !== '\n') at++;
    } else if (character === '\n' && depth === 0) {
      if (line.trim()) yield line.trim();
      line = '';
    } else {
      // a table's header is a line of its own: its brackets open nothing
      const header = /^\s*\[/.test(line + character) && !line.includes('=');
      if (!header && '[{'.includes(character)) depth++;
      if (!header && ']}'.includes(character)) depth--;
      line += /\s/.test(character) ? ' ' : character;
    }
  }
  if (line.trim()) yield line.trim();
}

/** The end of the string that begins there; `at` itself if none does. */
function stringAt(text: string, at: number): number {
  const quote = text[at];
  if (quote !== '"' && quote !== "'") return at;
  const long = text.startsWith(quote.repeat(3), at);
  const mark = long ? quote.repeat(3) : quote;
  let end = at + mark.length;
  while (end < text.length && !text.startsWith(mark, end)) {
    if (!long && text[end] === '\n') return at + 1;
    end += quote === '"' && text[end] === '\\' ? 2 : 1;
  }
  return Math.min(text.length, end + mark.length);
}

function equalsSign(line: string): number {
  let at = 0;
  while (at < line.length && line[at] !== '=') {
    const quoted = stringAt(line, at);
    at = quoted > at ? quoted : at + 1;
  }
  return at < line.length ? at : -1;
}

function keysOf(text: string): string[] {
  const keys = text.match(/"(?:[^"\\]|\\.)*"|'[^']*'|[^.\s]+/g) ?? [];
  return keys.map((key) => (/^["']/.test(key) ? key.slice(1, -1) : key));
}

/** 1e-05 and 0.00001, [1,2] and [ 1, 2, ] are the same. */
function canonical(text: string): string {
  const value = text.trim();
  if (/^[+-]?[\d_]+(\.[\d_]+)?([eE][+-]?\d+)?$/.test(value)) return String(Number(value.replace(/_/g, '')));
  if (value.startsWith('[')) return value.replace(/\s*,\s*\]/g, ']').replace(/\[\s+/g, '[').replace(/\s+\]/g, ']').replace(/\s*,\s*/g, ', ');
  if (/^'[^']*'$/.test(value) && !value.includes('"')) return `"${value.slice(1, -1)}"`;
  return value;
}
