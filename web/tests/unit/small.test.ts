import { afterEach, describe, expect, it, vi } from 'vitest';
import { ApiFailure, request } from '../../src/lib/api';
import { decodeText, readFile, Refused } from '../../src/lib/attachments';
import { duration, percent, short, size } from '../../src/lib/format';
import { tables } from '../../src/lib/locales';
import { settings } from '../../src/lib/settings.svelte';
import { pressed } from '../../src/lib/shortcuts';
import { bucket, perplexity, textBefore, visible } from '../../src/lib/tokens';

afterEach(() => vi.unstubAllGlobals());

describe('numbers', () => {
  it('are short', () => {
    expect([834, 2048, 8396, 131072].map(short)).toEqual(['834', '2k', '8.2k', '128k']);
    expect([340, 1234, 12_400, 125_000].map(duration)).toEqual(['0.34 s', '1.2 s', '12 s', '2 min 5 s']);
    expect([512, 3400, 81_000, 1_200_000].map(size)).toEqual(['512 B', '3.4 kB', '81 kB', '1.2 MB']);
    expect([0, Math.log(0.998), Math.log(0.031), -8, -40].map(percent)).toEqual(['100 %', '99.8 %', '3.1 %', '0.03 %', '< 0.01 %']);
  });
});

describe('tokens', () => {
  it('have a colour, and can be seen', () => {
    expect([0, Math.log(0.95), Math.log(0.5), Math.log(0.01), -100].map(bucket)).toEqual([9, 9, 5, 0, 0]);
    expect(['', 'a\n', '\t'].map(visible)).toEqual(['∎', 'a↵', '⇥']);
    expect(perplexity([['a', Math.log(0.5), []], ['b', Math.log(0.5), []]])).toBeCloseTo(2);
  });
});

describe('the text before a token', () => {
  it('is whole characters, as they stand in the answer', () => {
    const tokens: [string, number, []][] = [' a', '\\xE5\\xAD', '\\x97', ' b'].map((text) => [text, 0, []]);
    expect([0, 1, 2, 3, 4].map((n) => textBefore(tokens, n, 'a字 b'))).toEqual(['', ' a', null, ' a字', ' a字 b']);
    expect(textBefore(tokens, 1, 'other')).toBeNull();
  });
});

describe('files', () => {
  it('are text by their bytes, not by their names', async () => {
    expect(decodeText(new TextEncoder().encode('é'))).toBe('é');
    expect(decodeText(new Uint8Array([0xff, 0xfe, 0x41, 0]))).toBe('A');
    expect(decodeText(new Uint8Array([0x89, 0x50, 0, 0]))).toBeNull();
    const read = await readFile(new File(['int main;'], 'x.unknown'));
    expect(read).toEqual({ name: 'x.unknown', kind: 'text', size_bytes: 9, text: 'int main;' });
    await expect(readFile(new File([new Uint8Array([0, 1, 2])], 'x.txt'))).rejects.toThrow(Refused);
  });
});

describe('shortcuts', () => {
  const event = (code: string, key: string, more: Partial<KeyboardEvent> = {}): Parameters<typeof pressed>[0] => ({
    code, key, ctrlKey: false, metaKey: false, shiftKey: false, altKey: false, target: null, ...more,
  });

  it('are known by their keys, and leave typing alone', () => {
    expect(pressed(event('KeyK', 'k', { ctrlKey: true }))).toBe('search');
    expect(pressed(event('KeyK', 'k', { metaKey: true }))).toBe('search');
    expect(pressed(event('KeyO', 'O', { ctrlKey: true, shiftKey: true }))).toBe('newChat');
    expect(pressed(event('Slash', '?', { shiftKey: true }))).toBe('help');
    expect(pressed(event('Digit7', '/', { shiftKey: true }))).toBe('focus');
    expect(pressed(event('Slash', '?', { shiftKey: true, target: document.createElement('textarea') }))).toBeNull();
    expect(pressed(event('KeyK', 'k'))).toBeNull();
    expect(pressed(event('Enter', 'Enter'))).toBeNull();
  });
});

describe('languages', () => {
  it('say something for every word', () => {
    const check = (table: object): void => {
      for (const value of Object.values(table)) {
        if (typeof value === 'string') expect(value.trim()).not.toBe('');
        else if (typeof value === 'object') check(value as object);
      }
    };
    Object.values(tables).forEach(check);
  });
});

describe('calls', () => {
  it('show the key, and fail with the words of the server', async () => {
    settings.set({ key: 'secret' });
    const sent: Headers[] = [];
    vi.stubGlobal('fetch', async (_: string, init: RequestInit) => {
      sent.push(init.headers as Headers);
      return new Response('{"error":{"message":"no such model"}}', { status: 404 });
    });
    await expect(request('/v1/models')).rejects.toMatchObject({ status: 404, message: 'no such model' });
    expect(sent[0]?.get('Authorization')).toBe('Bearer secret');
    settings.set({ key: '' });
  });

  it('to a server that is not there are failures of status 0', async () => {
    vi.stubGlobal('fetch', () => Promise.reject(new TypeError('Failed to fetch')));
    await expect(request('/x')).rejects.toBeInstanceOf(ApiFailure);
    await expect(request('/x')).rejects.toMatchObject({ status: 0 });
  });
});
