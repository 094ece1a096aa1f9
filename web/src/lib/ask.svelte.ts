// Questions to the user, as promises; AskDialog shows them one at a time.

export type Question =
  | { kind: 'text'; title: string; label: string; value: string; hint?: string; suggestions?: string[]; action: string }
  | { kind: 'confirm'; title: string; text: string; action: string };

class Ask {
  question: Question | null = $state.raw(null);
  #answer: (value: string | null) => void = () => undefined;

  #put(question: Question): Promise<string | null> {
    this.#answer(null);
    this.question = question;
    return new Promise((resolve) => (this.#answer = resolve));
  }

  /** The text, null if the user thought better of it. */
  text(question: Omit<Question & { kind: 'text' }, 'kind'>): Promise<string | null> {
    return this.#put({ kind: 'text', ...question });
  }

  async confirm(question: Omit<Question & { kind: 'confirm' }, 'kind'>): Promise<boolean> {
    return (await this.#put({ kind: 'confirm', ...question })) !== null;
  }

  reply(value: string | null): void {
    this.question = null;
    this.#answer(value);
  }
}

export const ask = new Ask();
