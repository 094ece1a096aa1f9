// A server with keys asks for one, and each key has its own conversations; a restarted server has them still.
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { browse, onPage, serve, shot } from './harness.mjs';

test('a key is asked for, kept, and opens what belongs to it, also after a restart', async () => {
  const data = mkdtempSync(join(tmpdir(), 'etude-browser-'));
  const options = { data, env: { LLAMA_API_KEY: 'first,second' } };
  const browser = await browse();
  const allowed = [/status of 401/];
  let server = await serve([], options);
  const enter = async (page, key) => {
    await page.getByLabel('API key').fill(key);
    await page.getByRole('button', { name: 'Use this key' }).click();
  };
  const open = async (page, key) => {
    const loaded = page.waitForEvent('load');
    await enter(page, key);
    await loaded;
  };
  try {
    await onPage(
      browser,
      server.url,
      async (page) => {
        await page.getByRole('dialog', { name: 'This server asks for a key' }).waitFor();
        await shot(page, 'key');
        await enter(page, 'wrong');
        await page.getByText('does not know this key').waitFor();
        await open(page, 'first');
        await page.getByLabel('Message', { exact: true }).fill('Hello there');
        await page.keyboard.press('Enter');
        await page.locator('[data-action=regenerate]').waitFor();
        await page.reload();
        await page.getByRole('link', { name: 'Hello there' }).waitFor();
        assert.equal(await page.getByRole('dialog').count(), 0);
      },
      { allowed },
    );
    await server.stop();
    server = await serve([], options);
    for (const [key, n] of [['second', 0], ['first', 1]]) {
      await onPage(
        browser,
        server.url,
        async (page) => {
          await open(page, key);
          if (n === 0) await page.getByText('Conversations will be listed here.').waitFor();
          else await page.getByRole('link', { name: 'Hello there' }).waitFor();
        },
        { allowed },
      );
    }
  } finally {
    await browser.close();
    await server.stop();
    rmSync(data, { recursive: true, force: true });
  }
});
