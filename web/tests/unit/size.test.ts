// @vitest-environment node
// What a browser fetches before the chat can be used: index.html and all that it needs at once, compressed.
import { readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { gzipSync } from 'node:zlib';
import { expect, it } from 'vitest';

const site = join(import.meta.dirname, '..', '..', '..', 'etude', 'serve', 'web');
const MOST_BYTES = 300_000;

function closure(first: string): Set<string> {
  const found = new Set<string>();
  const wait = [first];
  for (let file = wait.pop(); file !== undefined; file = wait.pop()) {
    if (found.has(file)) continue;
    found.add(file);
    const text = readFileSync(join(site, file), 'utf8');
    const links = file.endsWith('.html')
      ? [...text.matchAll(/(?:src|href)="\.\/([^"]+)"/g)]
      : [...text.matchAll(/(?:^|[;}\s])(?:import|export)[^;'"()]*?["'](\.\/[^"']+)["']/g)];
    for (const [, link] of links) if (link !== undefined) wait.push(join(dirname(file), link));
  }
  return found;
}

it('the first load is small', () => {
  const files = [...closure('index.html')];
  expect(files.some((file) => file.endsWith('.js'))).toBe(true);
  expect(files.some((file) => file.endsWith('.css'))).toBe(true);
  const bytes = files.reduce((sum, file) => sum + gzipSync(readFileSync(join(site, file))).length, 0);
  expect(bytes).toBeLessThan(MOST_BYTES);
  expect(bytes).toBeGreaterThan(20_000);
});

it('nothing stands in the page that its policy forbids, and no other host is named', () => {
  const html = readFileSync(join(site, 'index.html'), 'utf8');
  expect(html).not.toMatch(/<script(?![^>]*\bsrc=)/);
  expect(html).not.toMatch(/<style|style=|\son\w+=/);
  expect(html).not.toMatch(/(?:src|href)="(?:https?:)?\/\//);
});
