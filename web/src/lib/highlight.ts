// Colours of code: highlight.js's core, and a language when it is first met.
import hljs from 'highlight.js/lib/core';
import type { LanguageFn } from 'highlight.js';

type Loader = () => Promise<{ default: LanguageFn }>;

const loaders: Record<string, Loader> = {
  bash: () => import('highlight.js/lib/languages/bash'),
  c: () => import('highlight.js/lib/languages/c'),
  cpp: () => import('highlight.js/lib/languages/cpp'),
  csharp: () => import('highlight.js/lib/languages/csharp'),
  css: () => import('highlight.js/lib/languages/css'),
  diff: () => import('highlight.js/lib/languages/diff'),
  go: () => import('highlight.js/lib/languages/go'),
  ini: () => import('highlight.js/lib/languages/ini'),
  java: () => import('highlight.js/lib/languages/java'),
  javascript: () => import('highlight.js/lib/languages/javascript'),
  json: () => import('highlight.js/lib/languages/json'),
  kotlin: () => import('highlight.js/lib/languages/kotlin'),
  lua: () => import('highlight.js/lib/languages/lua'),
  markdown: () => import('highlight.js/lib/languages/markdown'),
  python: () => import('highlight.js/lib/languages/python'),
  r: () => import('highlight.js/lib/languages/r'),
  ruby: () => import('highlight.js/lib/languages/ruby'),
  rust: () => import('highlight.js/lib/languages/rust'),
  sql: () => import('highlight.js/lib/languages/sql'),
  swift: () => import('highlight.js/lib/languages/swift'),
  typescript: () => import('highlight.js/lib/languages/typescript'),
  xml: () => import('highlight.js/lib/languages/xml'),
  yaml: () => import('highlight.js/lib/languages/yaml'),
};

const aliases: Record<string, string> = {
  sh: 'bash', shell: 'bash', zsh: 'bash', console: 'bash', h: 'c', 'c++': 'cpp', cc: 'cpp', hpp: 'cpp', cs: 'csharp',
  'c#': 'csharp', patch: 'diff', golang: 'go', toml: 'ini', js: 'javascript', jsx: 'javascript', mjs: 'javascript',
  node: 'javascript', kt: 'kotlin', md: 'markdown', py: 'python', python3: 'python', rb: 'ruby', rs: 'rust',
  ts: 'typescript', tsx: 'typescript', html: 'xml', svg: 'xml', vue: 'xml', svelte: 'xml', yml: 'yaml', jsonc: 'json',
};

/** HTML of the coloured text; at once if the language is here. null: a language that is not known. */
function colour(text: string, written: string): string | null | Promise<string | null> {
  const lower = written.toLowerCase();
  const name = aliases[lower] ?? lower;
  const paint = (): string => hljs.highlight(text, { language: name, ignoreIllegals: true }).value;
  if (hljs.getLanguage(name)) return paint();
  const load = loaders[name];
  if (load === undefined) return null;
  return load().then(({ default: language }) => {
    hljs.registerLanguage(name, language);
    return paint();
  });
}

export const tool = { colour };
export type HighlightTool = typeof tool;
