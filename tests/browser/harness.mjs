// A real server, a real browser. One `etude serve` with SmolLM2 for all tests of a file; a fresh context of Chromium
// for each. What the page's policy stops, and whatever else reaches the console as an error, fails the test.
//   MODEL=FILE        instead of the one that `etude pull smollm2-135m` fetched
//   CHROMIUM=FILE     instead of the one on the PATH
//   TIMEOUT_MS=N      how long a page may take for one thing (two minutes)
//   SCREENSHOTS=DIR   keep a picture of each page that a test looks at (they are not part of the repository)
import { execFileSync, spawn } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, rmSync } from 'node:fs';
import { createRequire } from 'node:module';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { after } from 'node:test';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

export const ROOT = dirname(dirname(dirname(fileURLToPath(import.meta.url))));
const { chromium } = createRequire(join(ROOT, 'web', 'package.json'))('playwright-core');
export const ETUDE = join(ROOT, '.venv', 'bin', 'etude');
const STARTED_MS = 120_000;
const LEFT_MS = 30_000;

/** What is still to be ended where a test did not come to it: a process left over would keep the file's from ending. */
const left = new Set();
after(() => {
  // the file's own hooks come after this one: what they end is not in the way any more
  setTimeout(() => left.forEach((end) => end()), LEFT_MS).unref();
});

/** Ends with the tests of the file, whatever becomes of them. */
export function lent(child) {
  const end = () => child.kill('SIGKILL');
  left.add(end);
  child.once('exit', () => left.delete(end));
  return child;
}

/** A port that is free now. */
export function freePort() {
  return new Promise((resolve, reject) => {
    const probe = createServer().once('error', reject);
    probe.listen(0, '127.0.0.1', () => {
      const { port } = probe.address();
      probe.close(() => resolve(port));
    });
  });
}

export function modelPath() {
  if (process.env.MODEL) return process.env.MODEL;
  return execFileSync(ETUDE, ['pull', 'smollm2-135m'], { encoding: 'utf8' }).trim().split('\n').at(-1);
}

/** `etude VERB …` until it listens. `stop` ends it as a user would, `kill` as a power cut would; both wait. */
export async function start(verb, args = [], { env = {}, port: wanted } = {}) {
  const port = wanted ?? (await freePort());
  const child = lent(
    spawn(ETUDE, [verb, ...args, '--port', String(port)], {
      cwd: tmpdir(),
      env: { ...process.env, OMP_NUM_THREADS: '2', ...env },
      stdio: ['ignore', 'pipe', 'pipe'],
    }),
  );
  let said = '';
  const ended = new Promise((resolve) => child.once('exit', resolve));
  const listening = new Promise((resolve, reject) => {
    const timer = setTimeout(() => reject(new Error(`it did not start:\n${said}`)), STARTED_MS);
    const hear = (bytes) => {
      said += bytes;
      if (!/listening at/.test(said)) return;
      clearTimeout(timer);
      resolve();
    };
    child.stdout.on('data', hear);
    child.stderr.on('data', hear);
    child.once('exit', (code) => {
      clearTimeout(timer);
      reject(new Error(`it ended with ${code}:\n${said}`));
    });
  });
  await listening;
  return {
    url: `http://127.0.0.1:${port}`,
    port,
    kill: async () => {
      child.kill('SIGKILL');
      await ended;
    },
    stop: async () => {
      child.kill('SIGTERM');
      const timer = setTimeout(() => child.kill('SIGKILL'), 60_000);
      await ended;
      clearTimeout(timer);
    },
  };
}

/** `etude serve` with two names of one model, and a folder of its own for conversations. */
export async function serve(args = [], { data, ...options } = {}) {
  const model = modelPath();
  const folder = data ?? mkdtempSync(join(tmpdir(), 'etude-browser-'));
  if (data === undefined) process.once('exit', () => rmSync(folder, { recursive: true, force: true }));
  const server = await start(
    'serve',
    [`smol=${model}`, `other=${model}`, '-c', '1024', '--data-dir', folder, '--seed', '1', ...args],
    options,
  );
  return {
    ...server,
    folder,
  };
}

export async function browse() {
  const executablePath = process.env.CHROMIUM ?? ['/usr/bin/chromium', '/usr/bin/chromium-browser'].find(existsSync);
  const browser = await chromium.launch({
    ...(executablePath ? { executablePath } : { channel: 'chromium' }),
    args: [
      ...['no-sandbox', 'disable-gpu', 'disable-quic', 'no-first-run', 'disable-background-networking'],
      ...['disable-component-update', 'disable-sync', 'disable-dev-shm-usage'],
    ].map((flag) => `--${flag}`),
  });
  const end = () => browser.close();
  left.add(end);
  browser.once('disconnected', () => left.delete(end));
  return browser;
}

/** Run `work` on a fresh page, and fail with whatever went wrong on it. `allowed`: errors that are meant. */
export async function onPage(browser, url, work, { allowed = [], ...context } = {}) {
  const own = await browser.newContext({
    viewport: { width: 1280, height: 820 },
    locale: 'en-US',
    permissions: ['clipboard-read', 'clipboard-write'],
    acceptDownloads: true,
    ...context,
  });
  own.setDefaultTimeout(Number(process.env.TIMEOUT_MS ?? 120_000));
  const page = await own.newPage();
  const wrong = [];
  const note = (text) => {
    if (!allowed.some((pattern) => pattern.test(text))) wrong.push(text);
  };
  page.on('console', (message) => message.type() === 'error' && note(`console: ${message.text()}`));
  page.on('pageerror', (error) => note(`page: ${error.message}`));
  page.on('request', (request) => {
    if (!/^(?:data|blob):/.test(request.url()) && !request.url().startsWith(url)) note(`asked: ${request.url()}`);
  });
  try {
    await page.goto(`${url}/`);
    const result = await work(page);
    if (wrong.length > 0) throw new Error(`on the page:\n  ${wrong.join('\n  ')}`);
    return result;
  } catch (error) {
    await shot(page, 'failed').catch(() => undefined);
    if (wrong.length > 0 && !String(error.message).startsWith('on the page')) error.message += `\n  ${wrong.join('\n  ')}`;
    throw error;
  } finally {
    await own.close();
  }
}

/** Wait for a condition that no page can tell of. */
export async function until(condition, what = String(condition)) {
  for (let tries = 0; tries < 1200; tries++) {
    if (await condition()) return;
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
  throw new Error(`not in two minutes: ${what}`);
}

/** Keep a picture, where they are wanted. */
export async function shot(page, name) {
  const folder = process.env.SCREENSHOTS;
  if (!folder) return;
  mkdirSync(folder, { recursive: true });
  await page.screenshot({ path: join(folder, `${name}.png`) });
}

/** A PDF of one page with a line of text, as small as one can be. */
export function pdfOf(text) {
  const stream = `BT /F1 24 Tf 72 720 Td (${text}) Tj ET`;
  const objects = [
    '<< /Type /Catalog /Pages 2 0 R >>',
    '<< /Type /Pages /Kids [3 0 R] /Count 1 >>',
    '<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R /Resources << /Font << /F1 5 0 R >> >> >>',
    `<< /Length ${stream.length} >>\nstream\n${stream}\nendstream`,
    '<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>',
  ];
  let body = '%PDF-1.4\n';
  const places = objects.map((object, at) => {
    const place = body.length;
    body += `${at + 1} 0 obj\n${object}\nendobj\n`;
    return place;
  });
  const table = places.map((place) => `${String(place).padStart(10, '0')} 00000 n \n`).join('');
  const size = objects.length + 1;
  return Buffer.from(
    `${body}xref\n0 ${size}\n0000000000 65535 f \n${table}trailer\n<< /Size ${size} /Root 1 0 R >>\nstartxref\n${body.length}\n%%EOF\n`,
    'latin1',
  );
}
