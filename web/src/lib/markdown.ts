// Markdown of a model → HTML that cannot do anything: no script, no style, no host that is asked for a picture.
// Raw HTML is shown as it was written. Mathematics and code are placeholders that `enrich` brings to life.
import createDOMPurify from 'dompurify';
import { Marked, type Tokens } from 'marked';

const ESCAPES: Record<string, string> = { '&': '&amp;', '<': '&lt;', '>': '&gt;', '"': '&quot;', "'": '&#39;' };
export const escapeHtml = (text: string): string => text.replace(/[&<>"']/g, (sign) => ESCAPES[sign] ?? sign);

const math = (tex: string, display: boolean): string =>
  `<span class="${display ? 'math display' : 'math'}">${escapeHtml(tex)}</span>`;

interface MathToken extends Tokens.Generic {
  tex: string;
  display: boolean;
}

// $x$ as pandoc has it: no space inside the dollars, no digit after them, so that prices are left alone
const INLINE = /^\$(?![\s$])((?:\\[\s\S]|[^\\$\n])+?)(?<!\s)\$(?!\d)|^\\\(([\s\S]+?)\\\)/;
const DISPLAY = /^\$\$([\s\S]+?)\$\$|^\\\[([\s\S]+?)\\\]/;
const BLOCK = /^ {0,3}(?:\$\$([\s\S]+?)\$\$|\\\[([\s\S]+?)\\\])[ \t]*(?:\n|$)/;

const marked = new Marked({
  gfm: true,
  breaks: false,
  renderer: {
    html: ({ text }) => escapeHtml(text),
    // a picture would tell its host who reads: it is a link
    image: ({ href, text }) => `<a href="${escapeHtml(href)}">${escapeHtml(text || href)}</a>`,
    code: ({ text, lang }) =>
      `<pre><code class="language-${escapeHtml(/^[\w+#.-]*/.exec(lang ?? '')?.[0] ?? '')}">${escapeHtml(text)}\n</code></pre>`,
    table(token) {
      const row = (cells: Tokens.TableCell[], tag: string): string =>
        `<tr>${cells
          .map((cell) => `<${tag}${cell.align ? ` align="${cell.align}"` : ''}>${this.parser.parseInline(cell.tokens)}</${tag}>`)
          .join('')}</tr>`;
      const body = token.rows.map((cells) => row(cells, 'td')).join('');
      return `<div class="table" tabindex="0"><table><thead>${row(token.header, 'th')}</thead><tbody>${body}</tbody></table></div>`;
    },
  },
  extensions: [
    {
      name: 'blockMath',
      level: 'block',
      start: (source) => /\$\$|\\\[/.exec(source)?.index,
      tokenizer(source): MathToken | undefined {
        const found = BLOCK.exec(source);
        if (!found) return undefined;
        return { type: 'blockMath', raw: found[0], tex: (found[1] ?? found[2] ?? '').trim(), display: true };
      },
      renderer: (token) => `<p>${math(String(token['tex']), true)}</p>`,
    },
    {
      name: 'inlineMath',
      level: 'inline',
      start: (source) => /\$|\\\(|\\\[/.exec(source)?.index,
      tokenizer(source): MathToken | undefined {
        const display = DISPLAY.exec(source);
        const found = display ?? INLINE.exec(source);
        if (!found) return undefined;
        const tex = (found[1] ?? found[2] ?? '').trim();
        return { type: 'inlineMath', raw: found[0], tex, display: display !== null };
      },
      renderer: (token) => math(String(token['tex']), token['display'] === true),
    },
  ],
});

const purify = createDOMPurify(window);
purify.addHook('afterSanitizeAttributes', (node) => {
  if (node.tagName !== 'A') return;
  node.setAttribute('target', '_blank');
  node.setAttribute('rel', 'noopener noreferrer');
});

const ALLOWED = {
  ALLOWED_TAGS: [
    'a', 'blockquote', 'br', 'code', 'del', 'div', 'em', 'h1', 'h2', 'h3', 'h4', 'h5', 'h6', 'hr', 'input', 'li',
    'ol', 'p', 'pre', 'span', 'strong', 'sub', 'sup', 'table', 'tbody', 'td', 'th', 'thead', 'tr', 'ul',
  ],
  ALLOWED_ATTR: ['href', 'class', 'align', 'start', 'type', 'checked', 'disabled', 'tabindex', 'target', 'rel'],
  // DOMPurify asks this of every value, so what names no scheme must pass
  ALLOWED_URI_REGEXP: /^(?:(?:https?|mailto):|[^a-z]|[a-z+.-]+(?:[^a-z+.\-:]|$))/i,
  ALLOW_DATA_ATTR: false,
  ALLOW_ARIA_ATTR: false,
};

/** The blocks of a text, each in its own source: while a text grows, all but the last stay as they are. */
export function blocks(text: string): string[] {
  const found: string[] = [];
  for (const token of marked.lexer(text)) {
    if (token.type === 'space') continue;
    // a definition of a link belongs to the text that may use it; those are few, and read alone they are nothing
    found.push(token.raw);
  }
  return found;
}

/** Safe HTML of one block or of a whole text. Where nothing can be sanitised, it is the text as it was written. */
export function toHtml(text: string): string {
  if (!purify.isSupported) return `<p>${escapeHtml(text)}</p>`;
  return purify.sanitize(marked.parse(text, { async: false }), ALLOWED);
}
