// Builds the pages into the Python package: no inline script (CSP), relative addresses (--api-prefix), names with
// content hashes (cached for good). `npm run dev` serves the sources and asks a running `etude serve` for the rest.
import { svelte } from '@sveltejs/vite-plugin-svelte';
import type { Plugin } from 'vite';
import { defineConfig } from 'vitest/config';

const server = process.env['ETUDE_SERVER'] ?? 'http://127.0.0.1:8080';

/** KaTeX names three formats of each font; every browser that runs the page reads the first. */
function onlyWoff2(): Plugin {
  const others = /,\s*url\([^)]*\)\s*format\(['"](?:woff|truetype)['"]\)/g;
  return {
    name: 'only-woff2',
    enforce: 'pre',
    transform(code, id) {
      return id.endsWith('katex.min.css') ? { code: code.replace(others, ''), map: null } : undefined;
    },
  };
}

export default defineConfig(({ mode }) => ({
  base: './',
  plugins: [onlyWoff2(), svelte()],
  resolve: mode === 'test' ? { conditions: ['browser'] } : {},
  build: {
    outDir: process.env['ETUDE_WEB_OUT'] ?? '../etude/serve/web',
    emptyOutDir: true,
    target: 'es2022',
    cssTarget: ['chrome123', 'firefox120', 'safari17.5'],
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    chunkSizeWarningLimit: 2000,
  },
  server: {
    proxy: Object.fromEntries(
      ['/v1', '/api', '/props', '/health', '/tokenize', '/slots'].map((path) => [path, server]),
    ),
  },
  test: { environment: 'happy-dom', include: ['tests/unit/**/*.test.ts', 'src/**/*.test.ts'] },
}));
