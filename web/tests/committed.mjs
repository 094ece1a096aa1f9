// The pages in the Python package are the build of these sources: builds anew beside them, and compares bytes.
import { execFileSync } from 'node:child_process';
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const web = dirname(dirname(fileURLToPath(import.meta.url)));
const committed = join(web, '..', 'etude', 'serve', 'web');
const fresh = mkdtempSync(join(tmpdir(), 'etude-web-'));
const files = (folder) =>
  readdirSync(folder, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => join(entry.parentPath, entry.name).slice(folder.length + 1))
    .sort();
try {
  const vite = join(web, 'node_modules', 'vite', 'bin', 'vite.js');
  execFileSync(process.execPath, [vite, 'build', '--logLevel', 'warn'], {
    cwd: web,
    stdio: 'inherit',
    env: { ...process.env, ETUDE_WEB_OUT: fresh },
  });
  const wanted = files(fresh);
  const there = files(committed);
  const wrong = [
    ...wanted.filter((name) => !there.includes(name)).map((name) => `missing: ${name}`),
    ...there.filter((name) => !wanted.includes(name)).map((name) => `not of this source: ${name}`),
    ...wanted
      .filter((name) => there.includes(name))
      .filter((name) => !readFileSync(join(fresh, name)).equals(readFileSync(join(committed, name))))
      .map((name) => `differs: ${name}`),
  ];
  if (wrong.length > 0) {
    console.error(`etude/serve/web is not the build of web/ (make web):\n  ${wrong.join('\n  ')}`);
    process.exitCode = 1;
  } else {
    console.log(`etude/serve/web is the build of web/: ${wanted.length} files`);
  }
} finally {
  rmSync(fresh, { recursive: true, force: true });
}
