// After markdown has become HTML: code gets its colours, its language and a button to copy it; mathematics is set.
// Both libraries are fetched when the first such text is seen. KaTeX builds elements, not HTML text, so that the
// page's policy can forbid inline styles.
import type { HighlightTool } from './highlight';

let highlighting: HighlightTool | null = null;
let loadingHighlight: Promise<HighlightTool> | null = null;
type SetMath = (tex: string, target: HTMLElement, display: boolean) => void;
let setMath: SetMath | null = null;
let loadingMath: Promise<SetMath> | null = null;

export interface CopyWords {
  copy: string;
  copied: string;
}

/** Bring the code and mathematics inside an element to life. */
export function enrich(root: HTMLElement, words: CopyWords): void {
  for (const pre of root.querySelectorAll('pre')) dress(pre, words);
  const formulas = [...root.querySelectorAll<HTMLElement>('span.math:not([data-set])')];
  if (formulas.length > 0) void typeset(formulas);
}

function dress(pre: HTMLElement, words: CopyWords): void {
  const code = pre.querySelector('code');
  if (code === null || pre.parentElement?.classList.contains('code')) return;
  const language = /language-([\w+#.-]+)/.exec(code.className)?.[1] ?? '';
  const box = document.createElement('div');
  box.className = 'code';
  const bar = document.createElement('div');
  bar.className = 'code-bar';
  const name = document.createElement('span');
  name.textContent = language;
  const button = document.createElement('button');
  button.type = 'button';
  button.className = 'copy';
  button.textContent = words.copy;
  button.addEventListener('click', () => {
    const text = (code.textContent ?? '').replace(/\n$/, '');
    copyText(text)
      .then(() => {
        button.textContent = words.copied;
        setTimeout(() => (button.textContent = words.copy), 1600);
      })
      .catch(() => undefined);
  });
  bar.append(name, button);
  pre.replaceWith(box);
  pre.tabIndex = 0;
  box.append(bar, pre);
  if (language !== '') void colour(code, language);
}

async function colour(code: HTMLElement, language: string): Promise<void> {
  const text = code.textContent ?? '';
  if (highlighting === null) {
    loadingHighlight ??= import('./highlight').then(({ tool }) => tool);
    highlighting = await loadingHighlight;
  }
  const ready = highlighting.colour(text, language);
  const html = typeof ready === 'string' || ready === null ? ready : await ready;
  if (html !== null && code.textContent === text) code.innerHTML = html;
}

async function typeset(formulas: HTMLElement[]): Promise<void> {
  if (setMath === null) {
    loadingMath ??= import('./math').then((loaded) => loaded.setMath);
    setMath = await loadingMath;
  }
  for (const formula of formulas) {
    const tex = formula.textContent ?? '';
    formula.dataset['set'] = '';
    setMath(tex, formula, formula.classList.contains('display'));
  }
}

/** To the clipboard; also where the page is not served securely. */
export async function copyText(text: string): Promise<void> {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const area = document.createElement('textarea');
  area.value = text;
  area.className = 'hidden-visually';
  document.body.append(area);
  area.select();
  document.execCommand('copy');
  area.remove();
}
