import { describe, expect, it } from 'vitest';
import { events, splitEvents } from '../../src/lib/sse';
import { bodyOf, deltaOf, tokenText } from '../../src/lib/stream';

describe('server-sent events', () => {
  it('are cut where they end, with comments and either line break', () => {
    expect(splitEvents('data: {"a":1}\n\n: ping\n\ndata: {"b":2}\r\n\r\ndata: {"c"')).toEqual({
      data: ['{"a":1}', '{"b":2}'],
      rest: 'data: {"c"',
    });
  });

  it('come whole out of any pieces of bytes, in the middle of a character too', async () => {
    const bytes = new TextEncoder().encode('data: {"t":"é字"}\n\ndata: {"t":"z"}\n\ndata: [DONE]\n\ndata: {"t":"no"}\n\n');
    for (const size of [1, 2, 3, 7, 1000]) {
      const body = new ReadableStream<Uint8Array>({
        start(controller) {
          for (let at = 0; at < bytes.length; at += size) controller.enqueue(bytes.slice(at, at + size));
          controller.close();
        },
      });
      const got = [];
      for await (const event of events(new Response(body))) got.push(event);
      expect(got).toEqual([{ t: 'é字' }, { t: 'z' }]);
    }
  });
});

describe('chunks', () => {
  it('become text, thoughts, tokens, times', () => {
    const entry = { token: 'a', bytes: [97], logprob: -0.123456, top_logprobs: [{ token: 'b', bytes: [98], logprob: -2 }] };
    const delta = deltaOf({
      choices: [{ delta: { content: 'a', reasoning_content: 'r' }, logprobs: { content: [entry] }, finish_reason: 'stop' }],
      timings: { predicted_n: 1 },
    });
    expect(delta).toEqual({
      content: 'a', reasoning: 'r', tokens: [['a', -0.1235, [['b', -2]]]], timings: { predicted_n: 1 }, finishReason: 'stop',
    });
  });

  it('that are errors are failures', () => {
    expect(() => deltaOf({ error: { message: 'no room' } })).toThrow('no room');
  });

  it('show the bytes of a token that is a part of a character', () => {
    expect(tokenText({ token: '\uFFFD', bytes: [0xe5, 0xad] })).toBe('\\xE5\\xAD');
    expect(tokenText({ token: ' a', bytes: [32, 97] })).toBe(' a');
  });

  it('are asked for with what differs from the defaults, and nothing else', () => {
    const plain = { model: 'm', messages: [], sampling: {}, alternatives: null };
    expect(Object.keys(bodyOf(plain)).sort()).toEqual(['messages', 'model', 'stream', 'stream_options', 'timings_per_token']);
    expect(bodyOf({ ...plain, sampling: { top_k: 3 }, alternatives: 5 })).toMatchObject({
      top_k: 3, logprobs: true, top_logprobs: 5,
    });
  });
});
