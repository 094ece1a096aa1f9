// English, and with it the list of all words. The run pages keep theirs beside them (src/runs).
export const en = {
  app: {
    name: 'Etude',
    skip: 'Skip to the conversation',
    loading: 'Loading',
    pageFailed: 'This page could not be loaded. Reload to try again.',
    reload: 'Reload',
  },
};
