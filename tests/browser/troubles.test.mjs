// What goes wrong around an open page: another browser writes, the server dies and comes back, a model is not there yet.
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { browse, onPage, serve, shot, until } from './harness.mjs';

const data = mkdtempSync(join(tmpdir(), 'etude-browser-'));
let server, browser;
before(async () => {
  [server, browser] = await Promise.all([serve([], { data }), browse()]);
});
after(async () => {
  await browser?.close();
  await server?.stop();
  rmSync(data, { recursive: true, force: true });
});

const LOST = [/ERR_CONNECTION_REFUSED|ERR_INCOMPLETE_CHUNKED|ERR_CONNECTION_RESET|ERR_EMPTY_RESPONSE|ERR_SOCKET/];
const on = (work, options) => onPage(browser, server.url, work, options);
const back = (page) => page.evaluate(() => window.dispatchEvent(new Event('focus')));

async function api(path, method = 'GET', body) {
  const response = await fetch(server.url + path, {
    method,
    headers: { 'content-type': 'application/json' },
    ...(body === undefined ? {} : { body: JSON.stringify(body) }),
  });
  assert.ok(response.ok, `${method} ${path}: ${response.status}`);
  return response.json();
}

async function say(page, text) {
  await page.getByLabel('Message', { exact: true }).fill(text);
  await page.keyboard.press('Enter');
}

test('what another browser wrote is there on coming back, and what it deleted is gone', () =>
  on(
    async (page) => {
      const { id } = await api('/api/conversations', 'POST', { title: 'Shared' });
      const first = await api(`/api/conversations/${id}/messages`, 'POST', { parent: null, role: 'user', content: 'from here' });
      await page.goto(`${server.url}/#/c/${id}`);
      await page.getByText('from here').waitFor();
      await page.getByLabel('Message', { exact: true }).fill('half a thought');
      await api(`/api/conversations/${id}/messages`, 'POST', { parent: first.id, role: 'assistant', content: 'from elsewhere' });
      await api(`/api/conversations/${id}`, 'PATCH', { title: 'Renamed elsewhere' });
      await back(page);
      await page.getByText('from elsewhere').waitFor();
      await page.getByRole('link', { name: 'Renamed elsewhere' }).waitFor();
      assert.equal(await page.getByLabel('Message', { exact: true }).inputValue(), 'half a thought');
      await api(`/api/conversations/${id}`, 'DELETE');
      await back(page);
      await page.getByText('There is no such conversation.').waitFor();
      await page.getByRole('link', { name: 'Renamed elsewhere' }).waitFor({ state: 'detached' });
    },
    { allowed: [/status of 404/] },
  ));

test('the server dies in the middle of an answer and comes back: nothing is lost, and the page goes on', () =>
  on(
    async (page) => {
      await page.route('**/v1/chat/completions', (route) => route.continue({ postData: { ...route.request().postDataJSON(), ignore_eos: true } }));
      await say(page, 'Tell a very long story about a river.');
      await page.waitForURL(/#\/c\/\w+/);
      const [, id] = /#\/c\/(\w+)/.exec(page.url());
      const kept = async () => (await api(`/api/conversations/${id}`)).messages.at(-1);
      await until(async () => {
        const last = await kept();
        return last?.role === 'assistant' && last.content !== '';
      }, 'a part of the answer is kept');
      const { content } = await kept();
      await server.kill();
      await page.getByRole('alert').filter({ hasText: 'The connection to the server broke off.' }).waitFor();
      await say(page, 'Are you there?');
      await page.getByRole('alert').filter({ hasText: 'The server does not answer' }).first().waitFor();
      assert.equal(await page.getByLabel('Message', { exact: true }).inputValue(), 'Are you there?');
      await shot(page, 'server-away');

      server = await serve([], { data, port: server.port });
      assert.ok((await kept()).content.startsWith(content));
      await page.keyboard.press('Control+Period');
      await page.getByRole('spinbutton', { name: 'Longest answer' }).fill('8');
      await page.keyboard.press('Control+Period');
      await page.getByLabel('Message', { exact: true }).focus();
      await page.keyboard.press('Enter');
      await page.locator('article').last().locator('[data-action=regenerate]').waitFor();
      await until(async () => (await api(`/api/conversations/${id}`)).messages.length === 4, 'four messages are kept');
      assert.equal(await page.getByRole('alert').filter({ hasText: 'The server does not answer' }).count(), 0);
    },
    { allowed: LOST },
  ));

test('a page that finds no server tries again; a model that is not there yet is waited for', () =>
  on(
    async (page) => {
      let refused = 0;
      await page.route('**/api/session', (route) => (refused++ < 2 ? route.fulfill({ status: 503, json: { error: { message: 'Loading' } } }) : route.continue()));
      await page.reload();
      await page.getByRole('alert').filter({ hasText: 'The server does not answer' }).waitFor();
      await page.getByRole('alert').waitFor({ state: 'detached' });
      assert.equal(refused, 3);

      let go;
      const seen = new Promise((resolve) => (go = resolve));
      await page.route('**/v1/chat/completions', async (route) => (await seen, route.continue()));
      await page.getByLabel('Model', { exact: true }).selectOption('other');
      await say(page, 'Say hello.');
      await page.getByText('The model is being loaded').waitFor();
      await shot(page, 'model-loading');
      go();
      await page.locator('article .markdown').waitFor();
      await page.keyboard.press('Escape');
    },
    { allowed: [/status of 503/] },
  ));
