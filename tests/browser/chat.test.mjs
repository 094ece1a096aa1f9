// The chat page: every feature once, with SmolLM2. What it answers does not matter, but that it comes.
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { after, before, test } from 'node:test';
import { browse, onPage, pdfOf, serve, shot, until } from './harness.mjs';

let server;
let browser;
before(async () => {
  [server, browser] = await Promise.all([serve(), browse()]);
});
after(async () => {
  await browser?.close();
  await server?.stop();
});

const on = (work, options) => onPage(browser, server.url, work, options);
const last = (page) => page.locator('article').last();
const answered = (page) => last(page).locator('[data-action=regenerate]').waitFor();
const bubble = (page, text) => page.locator('.bubble', { hasText: text });
const action = (page, name) => last(page).locator(`[data-action=${name}]`);

/** Fewer tokens: the tests wait for answers, not for long ones. */
async function limit(page, n) {
  await page.keyboard.press('Control+Period');
  await page.getByRole('spinbutton', { name: 'Longest answer' }).fill(String(n));
  await page.keyboard.press('Control+Period');
}

async function say(page, text) {
  await page.getByLabel('Message', { exact: true }).fill(text);
  await page.keyboard.press('Enter');
}

async function ask(page, text, n = 12) {
  await limit(page, n);
  await say(page, text);
  await answered(page);
}

async function api(path, method = 'GET', body) {
  const response = await fetch(server.url + path, {
    method,
    headers: { 'content-type': 'application/json' },
    ...(body === undefined ? {} : { body: JSON.stringify(body) }),
  });
  assert.equal(response.ok, true, `${method} ${path}: ${response.status}`);
  return response.json();
}

/** A conversation of the server: [role, content, more] in turn. */
async function stored(title, messages, more = {}) {
  const made = await api('/api/conversations', 'POST', { title, ...more });
  let parent = null;
  for (const [role, content, extra] of messages) {
    ({ id: parent } = await api(`/api/conversations/${made.id}/messages`, 'POST', { parent, role, content, ...extra }));
  }
  return made.id;
}

test('an answer streams, has its numbers, and is found after a reload', () =>
  on(async (page) => {
    await limit(page, 400);
    await say(page, 'Count from one to fifty in words.');
    await page.getByRole('button', { name: 'Stop' }).waitFor();
    await page.waitForFunction(() => document.querySelector('article:last-of-type .markdown')?.textContent.length > 5);
    const early = await last(page).locator('.markdown').textContent();
    await page.waitForFunction((n) => document.querySelector('article:last-of-type .markdown').textContent.length > n, early.length);
    await answered(page);
    const text = await last(page).locator('.markdown').textContent();
    assert.match(await last(page).locator('[data-stats]').textContent(), /\d+ tokens · [\d.]+ tokens\/s · first after [\d.]+ s/);
    assert.match(await page.getByRole('meter').getAttribute('aria-valuetext'), /^[\d,]+ of 1,024 tokens/);
    assert.notEqual(await page.getByRole('meter').getAttribute('aria-valuenow'), '0');
    assert.match(page.url(), /#\/c\/\w+/);
    await page.reload();
    await page.waitForSelector('article .markdown');
    assert.equal(await last(page).locator('.markdown').textContent(), text);
    assert.equal(await page.locator('.bubble').textContent(), 'Count from one to fifty in words.');
  }));

test('stop keeps what was said, and continue goes on from there', () =>
  on(async (page) => {
    await limit(page, 600);
    await say(page, 'Tell a very long story about a lighthouse.');
    await page.waitForFunction(() => document.querySelector('article:last-of-type .markdown')?.textContent.length > 20);
    await page.keyboard.press('Escape');
    await answered(page);
    assert.match(await last(page).locator('[data-stats]').textContent(), /Stopped/);
    const text = (await last(page).locator('.markdown').textContent()).trim();
    const [, id] = /#\/c\/(\w+)/.exec(page.url());
    const stored = async () => (await api(`/api/conversations/${id}`)).messages;
    await until(async () => (await stored()).at(-1).timings?.finish_reason === 'stopped', 'the end is kept');
    const kept = (await stored()).at(-1);
    assert.ok(kept.content.length > 10, 'what had come is kept');
    await limit(page, 20);
    await action(page, 'continue').click();
    await page.getByRole('button', { name: 'Stop' }).waitFor({ state: 'detached' });
    await answered(page);
    const longer = (await last(page).locator('.markdown').textContent()).trim();
    assert.ok(longer.startsWith(text.slice(0, 20)) && longer.length > text.length, 'it went on');
    await until(async () => (await stored()).at(-1).content.length > kept.content.length, 'the rest is kept');
    const after = await stored();
    assert.equal(after.length, 2);
    assert.ok(after.at(-1).content.startsWith(kept.content));
  }));

test('edit and regenerate make versions, with previous and next, by mouse and keyboard', () =>
  on(async (page) => {
    await ask(page, 'Name a colour.');
    await action(page, 'regenerate').click();
    await page.getByRole('group', { name: 'Version 2 of 2' }).waitFor();
    await answered(page);
    await page.getByRole('button', { name: 'Previous version' }).click();
    await page.getByRole('group', { name: 'Version 1 of 2' }).waitFor();
    await page.keyboard.press('Alt+BracketRight');
    await page.getByRole('group', { name: 'Version 2 of 2' }).waitFor();

    await page.keyboard.press('Alt+KeyE');
    await page.getByLabel('Edit the message').fill('Name a fruit.');
    await page.keyboard.press('Control+Enter');
    await bubble(page, 'Name a fruit.').waitFor();
    await answered(page);
    const mine = page.locator('article').first();
    assert.match(await mine.locator('.versions').textContent(), /2\/2/);
    await mine.getByRole('button', { name: 'Previous version' }).click();
    await bubble(page, 'Name a colour.').waitFor();
    const [, id] = /#\/c\/(\w+)/.exec(page.url());
    const { messages, current } = await api(`/api/conversations/${id}`);
    assert.equal(messages.length, 5);
    await page.reload();
    await bubble(page, 'Name a colour.').waitFor();
    assert.ok(messages.some((message) => message.id === current));

    await page.keyboard.press('Alt+KeyR');
    await page.getByRole('group', { name: 'Version 3 of 3' }).waitFor();
    await answered(page);
    await action(page, 'delete').click();
    await page.getByRole('dialog').getByRole('button', { name: 'Delete' }).click();
    await page.getByRole('group', { name: 'Version 2 of 2' }).waitFor();
  }));

test("an assistant's message is edited into a version of its own", () =>
  on(async (page) => {
    const id = await stored('Rewriting', [['user', 'Hi'], ['assistant', 'Hello!', { model: 'smol' }]]);
    await page.goto(`${server.url}/#/c/${id}`);
    await action(page, 'edit').click();
    await page.getByLabel('Edit the message').fill('Good day!');
    await page.getByRole('button', { name: 'Save as a new version' }).click();
    await page.getByRole('group', { name: 'Version 2 of 2' }).waitFor();
    assert.equal((await last(page).locator('.markdown').textContent()).trim(), 'Good day!');
  }));

test('conversations are searched by title and text, renamed, pinned, put into folders, deleted', () =>
  on(async (page) => {
    await stored('Quasars', [['user', 'distant lights'], ['assistant', 'the zirconium lantern']]);
    await stored('Bread', [['user', 'flour and water']]);
    await page.reload();
    const side = page.getByRole('navigation', { name: 'Conversations' });
    await side.getByRole('link', { name: 'Quasars' }).waitFor();
    await page.keyboard.press('Control+KeyK');
    await page.keyboard.type('zirconium');
    await side.getByRole('link', { name: 'Bread' }).waitFor({ state: 'detached' });
    await side.getByRole('link', { name: 'Quasars' }).waitFor();
    await page.keyboard.press('Escape');
    await side.getByRole('link', { name: 'Bread' }).waitFor();

    const choose = async (title, item) => {
      await side.getByRole('button', { name: `Options for ${title}` }).focus();
      await page.keyboard.press('Enter');
      await page.getByRole('menuitem', { name: item, exact: true }).click();
    };
    await choose('Bread', 'Rename');
    await page.getByRole('dialog').locator('input').fill('Sourdough');
    await page.keyboard.press('Enter');
    await side.getByRole('link', { name: 'Sourdough' }).waitFor();
    await choose('Sourdough', 'Move to folder');
    await page.getByRole('dialog').locator('input').fill('Kitchen');
    await page.keyboard.press('Enter');
    await side.getByRole('button', { name: /Kitchen/ }).first().waitFor();
    await choose('Quasars', 'Pin');
    await side.getByRole('heading', { name: 'Pinned' }).waitFor();
    await shot(page, 'sidebar');
    await page.reload();
    await side.getByRole('heading', { name: 'Pinned' }).waitFor();
    await choose('Quasars', 'Delete');
    await page.getByRole('dialog').getByRole('button', { name: 'Delete' }).click();
    await side.getByRole('link', { name: 'Quasars' }).waitFor({ state: 'detached' });
    const { conversations } = await api('/api/conversations');
    assert.equal(conversations.find(({ title }) => title === 'Sourdough').folder, 'Kitchen');
    assert.ok(!conversations.some(({ title }) => title === 'Quasars'));
  }));

test('export and import: what was saved comes back', () =>
  on(async (page) => {
    const id = await stored('To be saved', [['user', 'remember the heron']]);
    await page.reload();
    await page.getByRole('button', { name: 'Options for To be saved' }).focus();
    await page.keyboard.press('Enter');
    const saving = page.waitForEvent('download');
    await page.getByRole('menuitem', { name: 'Export' }).click();
    const file = await (await saving).path();
    const saved = JSON.parse(readFileSync(file, 'utf8'));
    assert.equal(saved.format, 'etude-conversations');
    assert.equal(saved.conversations[0].messages[0].content, 'remember the heron');
    await api(`/api/conversations/${id}`, 'DELETE');

    const saveAll = page.waitForEvent('download');
    await page.getByRole('button', { name: 'Settings and more' }).click();
    await page.getByRole('menuitem', { name: 'Export all conversations' }).click();
    await saveAll;
    await page.getByLabel('Import conversations…').setInputFiles({
      name: 'saved.json', mimeType: 'application/json', buffer: readFileSync(file),
    });
    await page.getByRole('link', { name: 'To be saved' }).click();
    await bubble(page, 'remember the heron').waitFor();
  }));

test('system message and samplers are kept with the conversation, and only what differs is sent', () =>
  on(async (page) => {
    const bodies = [];
    page.on('request', (request) => {
      if (request.url().endsWith('/v1/chat/completions')) bodies.push(request.postDataJSON());
    });
    await page.getByRole('button', { name: 'Settings', exact: true }).click();
    const drawer = page.getByRole('complementary', { name: 'Settings' });
    const number = (name) => drawer.getByRole('spinbutton', { name });
    assert.equal(await number('Temperature').inputValue(), '0.8');
    assert.equal(await number('Top k').inputValue(), '40');
    await drawer.getByLabel('System message').fill('You are a heron.');
    await number('Longest answer').fill('8');
    await drawer.getByRole('slider', { name: 'Temperature' }).focus();
    await page.keyboard.press('Home');
    await drawer.getByText('Repetition').click();
    await number('Repeat penalty').fill('1.1');
    await drawer.getByText('Form and order').click();
    await drawer.getByLabel('Stop at').fill('###\n\\n\\n');
    await shot(page, 'settings');
    await say(page, 'Who are you?');
    await answered(page);
    const [{ messages, ...body }] = bodies;
    assert.deepEqual(messages, [
      { role: 'system', content: 'You are a heron.' },
      { role: 'user', content: 'Who are you?' },
    ]);
    assert.deepEqual(
      { temperature: body.temperature, max_tokens: body.max_tokens, repeat_penalty: body.repeat_penalty, stop: body.stop },
      { temperature: 0, max_tokens: 8, repeat_penalty: 1.1, stop: ['###', '\n\n'] },
    );
    for (const name of ['top_k', 'top_p', 'min_p', 'seed', 'samplers', 'dry_multiplier', 'mirostat']) {
      assert.ok(!(name in body), `${name} is the default and was sent`);
    }
    await page.reload();
    await page.getByRole('button', { name: /^Settings, 5 changed/ }).click();
    assert.equal(await drawer.getByLabel('System message').inputValue(), 'You are a heron.');
    await drawer.getByRole('button', { name: 'Reset all' }).click();
    assert.equal(await number('Temperature').inputValue(), '0.8');
  }));

test('thoughts fold; markdown, tables, mathematics and code are set; nothing in it can act', () =>
  on(async (page) => {
    const text = [
      'A **bold** word, $e^{i\\pi} = -1$, and:', '', '| a | b |', '|--|--:|', '| 1 | 2 |', '',
      '$$\\int_0^1 x^2 dx$$', '', '```python', 'def f(x):', '    return x + 1', '```', '',
      '<img src=x onerror="window.acted = 1"><script>window.acted = 1</script>', '',
      '[click](javascript:window.acted=1) ![p](http://127.0.0.1:9/pixel.png)',
    ].join('\n');
    const id = await stored('Rich', [['user', 'show'], ['assistant', text, { reasoning: 'I think of *herons*.', model: 'smol' }]]);
    await page.goto(`${server.url}/#/c/${id}`);
    const answer = last(page);
    await answer.locator('.katex-display').waitFor();
    assert.equal(await answer.locator('.katex').count(), 2);
    const height = await answer.locator('.katex-display .mfrac, .katex-display .mop').first().evaluate((node) => node.getBoundingClientRect().height);
    assert.ok(height > 10, 'KaTeX has its styles and fonts');
    await answer.locator('.hljs-keyword').first().waitFor();
    assert.equal(await answer.locator('table td').count(), 2);
    assert.equal(await answer.locator('table td').nth(1).evaluate((node) => getComputedStyle(node).textAlign), 'right');
    await answer.getByRole('button', { name: 'Copy', exact: true }).first().click();
    assert.equal(await page.evaluate(() => navigator.clipboard.readText()), 'def f(x):\n    return x + 1');
    assert.equal(await answer.locator('img, script, a[href^="javascript"]').count(), 0);
    assert.equal(await page.evaluate(() => window.acted), undefined);
    assert.equal(await answer.getByText('I think of').isVisible(), false);
    await answer.getByText('Thoughts').click();
    await answer.locator('.thoughts em').waitFor();
    await shot(page, 'rich');
  }));

test('text and PDF are attached, looked at, and read by the model', () =>
  on(async (page) => {
    const bodies = [];
    page.on('request', (request) => {
      if (request.url().endsWith('/v1/chat/completions')) bodies.push(request.postDataJSON());
    });
    const picker = page.locator('input[type=file][multiple]');
    await picker.setInputFiles([
      { name: 'note.md', mimeType: 'text/markdown', buffer: Buffer.from('The code is 4711.') },
      { name: 'page.pdf', mimeType: 'application/pdf', buffer: pdfOf('Herons eat fish') },
    ]);
    await page.getByText('1 page', { exact: true }).waitFor();
    await picker.setInputFiles([{ name: 'x.bin', mimeType: 'x/y', buffer: Buffer.from([0, 1, 2, 0xff]) }]);
    await page.getByText('x.bin is not text').waitFor();
    await page.getByRole('button', { name: /note\.md/ }).first().click();
    await page.getByRole('dialog').getByText('The code is 4711.').waitFor();
    await page.keyboard.press('Escape');
    await shot(page, 'attachments');
    await ask(page, 'What is the code?', 8);
    const [{ messages }] = bodies;
    assert.match(messages[0].content, /note\.md:\n```\nThe code is 4711\.\n```/);
    assert.match(messages[0].content, /page\.pdf:\n```\nHerons eat fish\n```/);
    assert.match(messages[0].content, /What is the code\?$/);
    await page.reload();
    await page.getByRole('button', { name: /page\.pdf/ }).waitFor();
  }));

test('a long paste becomes a file', () =>
  on(async (page) => {
    await page.evaluate(() => navigator.clipboard.writeText('long '.repeat(1200)));
    await page.getByLabel('Message', { exact: true }).focus();
    await page.keyboard.press('Control+KeyV');
    await page.getByText('pasted.txt').waitFor();
    assert.equal(await page.getByLabel('Message', { exact: true }).inputValue(), '');
  }));

test('tokens show their probability and alternatives, by pointer and by keys; one of them goes on', () =>
  on(async (page) => {
    await page.keyboard.press('Alt+KeyT');
    await ask(page, 'Where do herons live?', 10);
    const tokens = last(page).locator('.token');
    assert.ok((await tokens.count()) >= 5);
    await tokens.nth(2).hover();
    const rows = page.locator('.card li');
    await rows.first().waitFor();
    assert.ok((await rows.count()) >= 5);
    assert.match(await rows.first().textContent(), /%/);
    assert.equal(await page.locator('.card li.chosen').count(), 1);
    await shot(page, 'tokens');
    await last(page).locator('.tokens').focus();
    await page.keyboard.press('Home');
    await page.keyboard.press('ArrowRight');
    assert.equal(await tokens.nth(1).evaluate((node) => node.classList.contains('at')), true);
    const other = page.locator('.card li:not(.chosen) button').first();
    const begins = (await tokens.nth(0).textContent()) + (await other.locator('code').textContent());
    await other.click();
    await page.getByRole('group', { name: 'Version 2 of 2' }).waitFor();
    await answered(page);
    const text = await last(page).locator('.tokens').textContent();
    assert.ok(text.trim().startsWith(begins.trim().slice(0, 6)), `${text} begins with ${begins}`);
  }));

test('two models answer one prompt side by side', () =>
  on(async (page) => {
    await page.getByRole('link', { name: 'Compare' }).click();
    const [left, right] = [page.getByLabel('Left: Model'), page.getByLabel('Right: Model')];
    await left.waitFor();
    await page.waitForFunction(() => document.querySelectorAll('section select')[1]?.value === 'other');
    assert.deepEqual([await left.inputValue(), await right.inputValue()], ['smol', 'other']);
    await page.getByRole('button', { name: 'Settings', exact: true }).click();
    await page.getByRole('spinbutton', { name: 'Longest answer' }).fill('16');
    await page.locator('form').getByRole('button', { name: /^Settings/ }).click();
    await page.getByLabel('Prompt', { exact: true }).fill('Say something about rivers.');
    await page.getByRole('button', { name: 'Run both' }).click();
    await page.waitForFunction(() => document.querySelectorAll('section [data-stats]').length === 2);
    await page.getByRole('button', { name: 'Run both' }).waitFor();
    assert.equal(await page.locator('section .markdown').count(), 2);
    await shot(page, 'compare');
    await page.getByRole('button', { name: 'Swap sides' }).click();
    assert.deepEqual([await left.inputValue(), await right.inputValue()], ['other', 'smol']);
  }));

test('English and Chinese, dark and light, a narrow page, the list of shortcuts', () =>
  on(
    async (page) => {
      const background = () => page.evaluate(() => getComputedStyle(document.body).backgroundColor);
      assert.equal(await background(), 'rgb(21, 21, 23)');
      await page.getByRole('button', { name: '显示侧栏' }).click();
      await page.getByRole('navigation', { name: '对话' }).getByRole('link', { name: '新对话' }).waitFor();
      await shot(page, 'narrow');
      await page.getByRole('button', { name: '设置与更多' }).click();
      await page.getByRole('menuitemradio', { name: 'English' }).click();
      await page.getByRole('button', { name: 'Theme: System' }).click();
      await page.getByRole('button', { name: 'Theme: Light' }).waitFor();
      assert.equal(await background(), 'rgb(252, 252, 251)');
      await page.keyboard.press('Escape');
      assert.equal(await page.getByRole('navigation', { name: 'Conversations' }).isVisible(), false);
      await page.reload();
      await page.getByRole('heading', { name: 'What shall we look at?' }).waitFor();
      assert.equal(await background(), 'rgb(252, 252, 251)');
      assert.equal(await page.evaluate(() => document.documentElement.scrollWidth), 390);
      await page.locator('main').click({ position: { x: 10, y: 10 } });
      await page.keyboard.press('Shift+Slash');
      await page.getByRole('dialog', { name: 'Keyboard shortcuts' }).waitFor();
      await page.keyboard.press('Escape');
      await page.getByRole('dialog').waitFor({ state: 'detached' });
      const kept = await page.evaluate(() => Object.keys(localStorage));
      assert.deepEqual(kept, ['etude.settings']);
    },
    { viewport: { width: 390, height: 780 }, locale: 'zh-CN', colorScheme: 'dark' },
  ));

test('an error of the server is said in its words, and can be tried again', () =>
  on(
    async (page) => {
      const id = await stored('Too long', [['user', 'heron '.repeat(3000)]]);
      await page.goto(`${server.url}/#/c/${id}`);
      await page.locator('.bubble').waitFor();
      await say(page, 'And now?');
      await page.getByRole('alert').getByText('The answer failed').waitFor();
      assert.match(await page.getByRole('alert').last().textContent(), /context/);
      await page.getByRole('button', { name: 'Try again' }).waitFor();
      await page.goto(`${server.url}/#/c/nothing`);
      await page.getByText('There is no such conversation.').waitFor();
    },
    { allowed: [/status of 40[04]/] },
  ));

test('everything can be reached and done by keyboard, and has a name', () =>
  on(async (page) => {
    await stored('By keys', [['user', 'hello'], ['assistant', 'Hello.', { model: 'smol' }]]);
    await page.reload();
    await page.getByRole('link', { name: 'By keys' }).click();
    await page.locator('article').first().waitFor();
    const nameless = await page.evaluate(() =>
      [...document.querySelectorAll('button, a, input, select, textarea')]
        .filter((node) => node.checkVisibility())
        .filter((node) => !(node.getAttribute('aria-label') || node.textContent.trim() || node.labels?.length))
        .map((node) => node.outerHTML.slice(0, 120)),
    );
    assert.deepEqual(nameless, []);
    for (const landmark of ['navigation', 'main', 'search']) await page.getByRole(landmark).first().waitFor();
    await page.locator('body').click({ position: { x: 700, y: 300 } });
    const seen = new Set();
    for (let presses = 0; presses < 120; presses += 1) {
      await page.keyboard.press('Tab');
      seen.add(await page.evaluate(() => document.activeElement?.getAttribute('aria-label') ?? document.activeElement?.textContent?.trim()));
    }
    for (const name of ['New chat', 'Search conversations', 'Message', 'Attach files', 'Copy', 'Edit', 'Settings']) {
      assert.ok(seen.has(name), `${name} is reached by Tab; ${[...seen].join(' | ')}`);
    }
    await page.evaluate(() => document.activeElement.blur());
    await page.keyboard.press('Slash');
    assert.equal(await page.evaluate(() => document.activeElement?.id), 'message');
  }));
