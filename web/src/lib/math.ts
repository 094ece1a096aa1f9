// Mathematics by KaTeX, as elements. What it cannot read is shown as it was written, in its colour for errors.
import katex from 'katex';
import 'katex/dist/katex.min.css';

/** Set a formula inside an element. Commands that could load or link anything are off; sizes have limits. */
export function setMath(tex: string, target: HTMLElement, display: boolean): void {
  try {
    katex.render(tex, target, {
      displayMode: display,
      throwOnError: false,
      errorColor: 'currentColor',
      trust: false,
      strict: 'ignore',
      maxSize: 20,
      maxExpand: 500,
    });
  } catch {
    target.textContent = tex;
  }
}
