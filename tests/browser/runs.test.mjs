// The run pages in a browser: example runs (tests/serve/example_runs.py), one of which is being written meanwhile.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { mkdtempSync, readdirSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { ROOT, browse, lent, modelPath, onPage, shot, start, until } from './harness.mjs';

const PYTHON = join(ROOT, '.venv', 'bin', 'python');
const OPENED_MS = 20_000; // 10,000 steps; alone on a machine it is one second, beside other work several
let folder, writer, server, browser;

/** Sizes and times of all files below a folder. */
function stamps(path) {
  return readdirSync(path, { recursive: true }).map((name) => {
    const { size, mtimeMs } = statSync(join(path, name));
    return [name, size, mtimeMs];
  });
}

before(async () => {
  folder = mkdtempSync(join(tmpdir(), 'etude-runs-'));
  const args = ['-m', 'tests.serve.example_runs', folder, '--model', modelPath(), '--pause-s', '1'];
  writer = lent(spawn(PYTHON, args, { cwd: ROOT, stdio: ['ignore', 'pipe', 'inherit'] }));
  await new Promise((resolve, reject) => {
    writer.stdout.once('data', resolve);
    writer.once('exit', (code) => reject(new Error(`example_runs ended with ${code}`)));
  });
  server = await start('view', [folder]);
  browser = await browse();
});

after(async () => {
  await browser?.close();
  await server?.stop();
  if (writer?.exitCode === null) {
    const gone = new Promise((resolve) => writer.once('exit', resolve));
    writer.kill('SIGINT');
    await gone;
  }
  rmSync(folder, { recursive: true, force: true });
});

const visit = (address, work, options) =>
  onPage(
    browser,
    server.url,
    async (page) => {
      await page.goto(`${server.url}/#/${address}`);
      return work(page);
    },
    options,
  );
const chart = (page, title) => page.locator('article', { has: page.getByRole('heading', { name: title, exact: true }) });
const value = async (page, title) => chart(page, title).locator('.legend b').first().textContent();

test('the list: all runs, sorted, filtered; several are compared', () =>
  visit('runs', async (page) => {
    const rows = page.locator('tbody tr');
    await rows.first().waitFor();
    assert.equal(await rows.count(), 6);
    assert.match(await page.getByRole('row', { name: /largest-running/ }).innerText(), /running[\s\S]*\d+ \/ 400/);
    assert.match(await page.getByRole('row', { name: /add-failed/ }).innerText(), /stopped/);
    assert.ok((await page.locator('td.curve svg path').count()) >= 5);
    await shot(page, 'runs-list');

    await page.getByRole('button', { name: 'Accuracy' }).click();
    const accuracies = await rows.locator('td:nth-of-type(6)').allInnerTexts();
    const numbers = accuracies.map(Number).filter((number) => !Number.isNaN(number));
    assert.deepEqual(numbers, [...numbers].sort((a, b) => b - a));

    await page.getByRole('searchbox', { name: /^Filter/ }).fill('largest-s');
    assert.equal(await rows.count(), 3);
    await page.getByRole('checkbox', { name: 'Select all' }).check();
    await page.getByRole('button', { name: 'Compare 3 runs' }).click();
    await page.waitForURL(/with=/);
    await page.getByText('3 seeds').waitFor();
  }));

test('one run: curves, cursor, zoom, smoothing, table, all metrics, time, settings', () =>
  visit('runs/largest-s0', async (page) => {
    await chart(page, 'Reward').locator('path.line').first().waitFor();
    for (const title of ['Reward', 'Reward, by part', 'Accuracy', 'Answer length (tokens)', 'Entropy (nats a token)', 'Gradient norm'])
      await chart(page, title).locator('path.line').first().scrollIntoViewIfNeeded();
    await shot(page, 'run');

    // the cursor of one chart is the cursor of all
    const plot = chart(page, 'Reward').locator('.chart > svg');
    const last = await value(page, 'Entropy (nats a token)');
    await plot.focus();
    await page.keyboard.press('Home');
    assert.notEqual(await value(page, 'Entropy (nats a token)'), last);
    await page.keyboard.press('ArrowRight');
    await chart(page, 'Loss').locator('.cursor').waitFor({ state: 'attached' });

    // drag: a part of the steps, in all charts; then all again
    const { x, y, width } = await plot.boundingBox();
    await page.mouse.move(x + width * 0.3, y + 60);
    await page.mouse.down();
    await page.mouse.move(x + width * 0.6, y + 60, { steps: 4 });
    await page.mouse.up();
    await page.getByText(/^steps \d+ to \d+$/).waitFor();
    await page.getByRole('button', { name: 'All steps' }).click();

    const before = await chart(page, 'Reward').locator('path.line').first().getAttribute('d');
    await page.getByRole('slider', { name: 'Smoothing' }).fill('0.8');
    assert.notEqual(await chart(page, 'Reward').locator('path.line').first().getAttribute('d'), before);
    assert.ok((await chart(page, 'Reward').locator('path.raw').count()) > 0);

    await chart(page, 'Reward').hover();
    await chart(page, 'Reward').getByRole('button', { name: 'Show as table' }).click();
    assert.ok((await chart(page, 'Reward').locator('tbody tr').count()) > 30);

    await page.getByText('All metrics').click();
    await page.getByRole('searchbox', { name: 'Search metrics' }).fill('reward std');
    await chart(page, 'reward/std').locator('path.line').waitFor();

    const time = page.getByRole('region', { name: 'Time and memory' });
    assert.match(await time.innerText(), /sampling[\s\S]*update/);
    assert.ok((await time.locator('svg rect').count()) > 80);
    await page.getByRole('region', { name: 'Settings' }).getByText('learning_rate').waitFor();
    await page.getByRole('button', { name: 'As TOML' }).click();
    await page.locator('pre', { hasText: '[optimizer]' }).waitFor();
  }));

test('what the doctor said stands in words, and in every chart at its step', () =>
  visit('runs/add-failed', async (page) => {
    const doctor = page.getByRole('region', { name: /^Doctor/ });
    await doctor.getByText('entropy-collapse').waitFor();
    await doctor.getByRole('button', { name: /earlier/ }).click();
    const findings = await doctor.locator('ol > li').count();
    assert.ok(findings > 3);
    await chart(page, 'Reward').locator('path.line').first().waitFor();
    assert.equal(await chart(page, 'Reward').locator('path.flag').count(), findings);
    await shot(page, 'run-doctor');
    await doctor.getByRole('link').first().click();
    await page.waitForURL(/steps\/\d+/);
  }));

test('seeds are a band; settings are compared', () =>
  visit('runs/largest-s0?with=largest-s1&with=largest-s2&with=add-failed', async (page) => {
    await chart(page, 'Reward').locator('path.band').waitFor();
    assert.equal(await chart(page, 'Reward').locator('path.line').count(), 2);
    await page.getByLabel('Seeds').selectOption('lines');
    assert.equal(await chart(page, 'Reward').locator('path.line').count(), 4);
    await page.getByRole('button', { name: /^largest\b.*3 seeds/ }).click();
    assert.equal(await chart(page, 'Reward').locator('path.line').count(), 1);
    await page.getByRole('row', { name: /^data.train/ }).waitFor();
    assert.equal(await page.getByRole('row', { name: /^model.name/ }).count(), 0);
    await page.getByRole('button', { name: 'All settings' }).click();
    await page.getByRole('row', { name: /^model.name/ }).waitFor();
    await shot(page, 'runs-compared');
  }));

test('every curve one asks for first: of seeds as a band, smoothed where it is dense', () =>
  visit('runs/largest-s0?with=largest-s1&with=largest-s2', async (page) => {
    const dense = ['Reward', 'Reward: math', 'Reward: math?parse=lenient', 'Answer length (tokens)', 'Entropy (nats a token)',
      'KL divergence (nats a token)', 'Mismatch engine – learner (k3)', 'Gradient norm', 'Throughput (tokens a second)']; // prettier-ignore
    const drawn = async (title) => {
      const card = chart(page, title);
      await card.locator('path.line').first().waitFor({ state: 'attached' }); // a level line counts as hidden
      assert.equal(await card.locator('path.line').count(), 1, title);
      return { line: await card.locator('path.line').getAttribute('d'), band: await card.locator('path.band').getAttribute('d') };
    };
    const all = {};
    for (const title of [...dense, 'Accuracy']) all[title] = await drawn(title);
    await page.getByLabel('Seeds').selectOption('interval');
    for (const title of dense) assert.notEqual((await drawn(title)).band, all[title].band, title);
    await drawn('Effective samples'); // three equal lines, apart by the dust of floating point
    all['Accuracy'] = await drawn('Accuracy');
    await page.getByRole('slider', { name: 'Smoothing' }).fill('0.8');
    for (const title of dense) assert.notEqual((await drawn(title)).line, all[title].line, title);
    assert.equal((await drawn('Accuracy')).line, all['Accuracy'].line); // ten evaluations are not smoothed
    await page.getByText('All metrics').click(); // what has no chart of its own is here
    await page.getByRole('searchbox', { name: 'Search metrics' }).fill('tokens_per_s/update');
    await chart(page, 'tokens_per_s/update').locator('path.line').waitFor();
  }));

test('a step: rewards in order, colours, numbers of a token, groups, other steps by keys', () =>
  visit('runs/largest-s0/steps/20', async (page) => {
    const answers = page.locator('article');
    await answers.first().waitFor();
    const rewards = (await page.locator('article .total').allInnerTexts()).map(Number);
    assert.deepEqual(rewards, [...rewards].sort((a, b) => b - a));
    await page.getByText('Read as').first().waitFor();
    await page.getByText('Expected').first().waitFor();

    const token = answers.first().locator('[role=group] span').first();
    const colour = () => token.evaluate((node) => node.style.background);
    const advantage = await colour();
    await token.hover();
    for (const name of ['Log probability', 'Advantage', 'Ratio']) await page.getByRole('status').getByText(name).waitFor();
    await page.getByLabel('Colour').selectOption('logprob');
    assert.notEqual(await colour(), advantage);
    await answers.first().locator('[role=group]').focus();
    await page.keyboard.press('ArrowRight');
    await page.getByRole('status').getByText(/position/).waitFor();
    await shot(page, 'step');

    await page.keyboard.press('j');
    await page.waitForURL(/steps\/21/);
    await page.keyboard.press('k');
    await page.waitForURL(/steps\/20/);

    await answers.first().getByRole('link', { name: 'Side by side' }).click();
    await page.waitForURL(/problem=/);
    await answers.nth(7).waitFor();
    assert.equal(await answers.count(), 8);
    await page.getByText('8 answers to this prompt').waitFor();
    await shot(page, 'step-group');
    await page.keyboard.press('Escape');
    await page.waitForURL((url) => !String(url).includes('problem='));
  }));

test('a run that is being written moves by itself', () =>
  visit('runs/largest-running', async (page) => {
    const progress = page.getByText(/^step \d+ of 400$/);
    await progress.waitFor();
    const first = await progress.innerText();
    const path = await chart(page, 'Reward').locator('path.line').first().getAttribute('d');
    let reopened = 0;
    page.on('request', (request) => (reopened += Number(/\/events\?/.test(request.url()))));
    await page.waitForFunction((text) => !document.body.innerText.includes(text), first);
    assert.notEqual(await chart(page, 'Reward').locator('path.line').first().getAttribute('d'), path);
    await page.getByText('running', { exact: true }).waitFor();
    assert.equal(reopened, 0); // one stream, not one for each row
  }));

test('of many live runs two are followed, and the rest is asked; a page in the background lets go', () =>
  visit('runs', async (page) => {
    // two that have ended pass for live: only one run is being written
    for (const name of ['largest-s0', 'largest-s1']) {
      await page.route(`${server.url}/api/runs/${name}`, async (route) => {
        const run = await (await fetch(route.request().url())).json();
        await route.fulfill({ json: { ...run, state: 'running' } });
      });
    }
    const followed = new Set();
    let streams = 0;
    page.on('request', (request) => /\/events\?/.test(request.url()) && (streams++, followed.add(request)));
    const closed = (request) => followed.delete(request);
    page.on('requestfailed', closed).on('requestfinished', closed);
    await page.goto(`${server.url}/#/runs/largest-s0?with=largest-s1&with=largest-running`);
    const rate = chart(page, 'Learning rate').locator('.legend li', { hasText: 'largest-running' }).locator('b');
    const moves = async () => {
      const now = await rate.textContent();
      await rate.filter({ hasNotText: now }).waitFor();
    };
    await rate.scrollIntoViewIfNeeded();
    await moves();
    const opened = streams;
    await moves();
    assert.deepEqual([followed.size, streams], [2, opened]);
    const look = (state) =>
      page.evaluate((value) => {
        Object.defineProperty(document, 'visibilityState', { value, configurable: true });
        document.dispatchEvent(new Event('visibilitychange'));
      }, state);
    await look('hidden');
    await until(() => followed.size === 0);
    await look('visible');
    await until(() => followed.size === 2);
  }));

test('10,000 steps: how soon they are there, and a part of them in full', () =>
  onPage(browser, server.url, async (page) => {
    const times = [];
    for (let i = 0; i < 3; i++) {
      await page.goto(`${server.url}/#/runs/largest-s1`);
      await chart(page, 'Reward').locator('path.line').first().waitFor(); // the page's own files are there
      const begin = Date.now();
      await page.goto(`${server.url}/#/runs/largest-10k`);
      await page.getByText('step 10000 of 10000').waitFor();
      await chart(page, 'Reward').locator('path.band').first().waitFor(); // its bins have extremes
      times.push(Date.now() - begin);
    }
    console.log(`# 10,000 steps: ${times.join(', ')} ms (the first reads the file)`);
    assert.ok(Math.min(...times) < OPENED_MS, `${times} ms`);
    await shot(page, 'run-10k');
    await chart(page, 'Reward').locator('.chart > svg').focus();
    for (let i = 0; i < 5; i++) await page.keyboard.press('+');
    await page.getByText(/^steps \d+ to \d+$/).waitFor();
    // so few steps are sent one by one: nothing is binned any more
    await chart(page, 'Reward').locator('path.band').first().waitFor({ state: 'detached' });
  }));

test('Chinese, dark, narrow: nothing is wider than the screen', () =>
  visit(
    'runs/largest-s0',
    async (page) => {
      await page.getByRole('heading', { name: '奖励', exact: true }).waitFor();
      assert.ok(await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth));
      await shot(page, 'run-narrow-dark-zh');
    },
    { locale: 'zh-CN', colorScheme: 'dark', viewport: { width: 390, height: 844 } },
  ));

test('looking changes nothing', async () => {
  const quiet = join(folder, 'add-failed');
  const before = stamps(quiet);
  await visit('runs/add-failed', (page) => chart(page, 'Reward').locator('path.line').first().waitFor());
  assert.deepEqual(stamps(quiet), before);
});

test('a run that is not there says so', () =>
  visit('runs/nowhere', (page) => page.getByRole('alert').getByText(/nowhere/).waitFor(), { allowed: [/404/] }));

