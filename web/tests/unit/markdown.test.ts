// @vitest-environment jsdom
// (DOMPurify's own tests run there; another imitation of a browser may let things through that none would)
import { describe, expect, it } from 'vitest';
import { blocks, toHtml } from '../../src/lib/markdown';

function dom(text: string): HTMLElement {
  const box = document.createElement('div');
  box.innerHTML = toHtml(text);
  return box;
}

describe('markdown', () => {
  it('has tables with alignment, lists and code with its language', () => {
    const box = dom('| a | b |\n|:-|-:|\n| 1 | 2 |\n\n- x\n- y\n\n```python\nprint("<b>")\n```');
    expect(box.querySelectorAll('td')).toHaveLength(2);
    expect(box.querySelector('td:last-child')?.getAttribute('align')).toBe('right');
    expect(box.querySelectorAll('li')).toHaveLength(2);
    expect(dom('3. x\n4. y').querySelector('ol')?.getAttribute('start')).toBe('3');
    expect(box.querySelector('code')?.className).toBe('language-python');
    expect(box.querySelector('code')?.textContent).toBe('print("<b>")\n');
  });

  it('takes mathematics for what it is, and prices for prices', () => {
    expect(dom('so $x^2$ and \\(y\\)').querySelectorAll('.math')).toHaveLength(2);
    expect(dom('$$\na_1 + b_2 * c\n$$').querySelector('.math.display')?.textContent).toBe('a_1 + b_2 * c');
    expect(dom('\\[ x < y \\]').querySelector('.math.display')?.textContent).toBe('x < y');
    expect(dom('it costs $5 or $6, and $ 7 $').querySelectorAll('.math')).toHaveLength(0);
    expect(dom('`$x$`').querySelectorAll('.math')).toHaveLength(0);
  });

  it.each([
    '<script>alert(1)</script>',
    '<img src=x onerror=alert(1)>',
    '<svg onload=alert(1)>',
    '<a href="javascript:alert(1)">x</a>',
    '[x](javascript:alert(1))',
    '[x](data:text/html,<script>alert(1)</script>)',
    '[x](vbscript:x)',
    '![x](javascript:alert(1))',
    '```"><img src=x onerror=alert(1)>\ncode\n```',
    '$<img src=x onerror=alert(1)>$',
    '<style>*{display:none}</style>',
    '<iframe src="//example.com"></iframe>',
    '[x]: javascript:alert(1)\n\n[x]',
    '<form action="//example.com"><input name=a></form>',
  ])('cannot act: %s', (text) => {
    const box = dom(text);
    expect(box.querySelectorAll('script, img, svg, style, iframe, object, form, button')).toHaveLength(0);
    for (const node of box.querySelectorAll('*')) {
      for (const { name, value } of [...node.attributes]) {
        expect(name).not.toMatch(/^on|^style$|^srcdoc$/);
        expect(value).not.toMatch(/^(?:javascript|data|vbscript):/i);
      }
    }
  });

  it('asks no host for pictures: they are links, which open elsewhere and tell nothing', () => {
    const link = dom('![a cat](https://example.com/cat.png)').querySelector('a');
    expect(link?.textContent).toBe('a cat');
    expect(link?.getAttribute('rel')).toContain('noreferrer');
    expect(link?.getAttribute('target')).toBe('_blank');
  });

  it('falls into blocks of which only the last changes while a text grows', () => {
    const whole = 'First.\n\n- a\n- b\n\n```js\nlet x = 1;\n\nlet y;\n```\n\nLast one';
    const parts = blocks(whole);
    expect(parts).toHaveLength(4);
    expect(parts.join('').replace(/\s+/g, '')).toBe(whole.replace(/\s+/g, ''));
    for (let end = 1; end < whole.length; end += 1) {
      const before = blocks(whole.slice(0, end));
      const after = blocks(whole.slice(0, end + 1));
      expect(after.slice(0, Math.max(0, before.length - 2))).toEqual(before.slice(0, -2));
    }
  });
});
