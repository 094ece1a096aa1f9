// A real training, watched while it runs, and its checkpoints, talked with: what the run pages and the chat are for.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { existsSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { ETUDE, browse, lent, modelPath, onPage, serve, shot, until } from './harness.mjs';

const WORDS = ['--data.train', 'task:add?low=1&high=9&size=40', '--data.held_out_size', '6', '--lora.rank', '4',
  '--batches.size', '4', '--batches.steps', '6', '--optimizer.learning_rate', '1e-4', '--eval.every', '3']; // prettier-ignore

/** `etude sft` on SmolLM2; whether it ended well, and what it said. */
function training(folder) {
  const words = ['sft', '--model.name', modelPath(), '--run.folder', folder, '--run.name', 'sums', ...WORDS];
  const child = lent(spawn(ETUDE, words, { cwd: folder, stdio: ['ignore', 'ignore', 'pipe'] }));
  let said = '';
  child.stderr.on('data', (bytes) => (said += bytes));
  return new Promise((resolve) => child.once('exit', (code) => resolve({ code, said })));
}

test('a training is watched, and its checkpoints are talked with, one and two beside each other', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'etude-browser-'));
  let [server, browser] = [];
  try {
    [server, browser] = await Promise.all([serve(['--runs', folder]), browse()]);
    const ended = training(folder);
    await until(() => existsSync(join(folder, 'sums', 'metrics.jsonl')), 'the run begins');
    await onPage(browser, server.url, async (page) => {
      await page.goto(`${server.url}/#/runs/sums`);
      const loss = page.locator('article', { has: page.getByRole('heading', { name: 'Loss', exact: true }) });
      await loss.locator('path.line').first().waitFor();
      await shot(page, 'training');
      const { code, said } = await ended;
      assert.equal(code, 0, said);
      await page.getByText('step 6 of 6').waitFor();
      await page.locator('header').getByText('finished').waitFor();

      // a checkpoint by its link
      const chats = page.getByRole('link', { name: 'Chat', exact: true });
      await chats.first().waitFor();
      await chats.first().click();
      await page.waitForURL(/model=runs%2Fsums%2F/);
      await page.getByLabel('Message', { exact: true }).fill('What is 3 + 4?');
      await page.keyboard.press('Enter');
      await page.locator('[data-action=regenerate]').waitFor();
      assert.match(await page.locator('article').last().innerText(), /runs\/sums\//);
      await page.waitForFunction(() => document.querySelector('[role=meter]').getAttribute('aria-valuemax') === '1024');
      await shot(page, 'checkpoint');

      // the model before and after
      await page.goto(`${server.url}/#/compare?left=smol&right=runs%2Fsums%2Ffinal`);
      await page.getByLabel('Prompt', { exact: true }).fill('What is 2 + 6?');
      await page.getByRole('button', { name: 'Run both' }).click();
      await page.waitForFunction(() => document.querySelectorAll('section [data-stats]').length === 2);
      await shot(page, 'before-after');
    });
  } finally {
    await browser?.close();
    await server?.stop();
    rmSync(folder, { recursive: true, force: true });
  }
});
