// Simplified Chinese.
import type { Words } from '.';

export const zh: Words = {
  app: {
    name: 'Etude',
    skip: '跳到对话',
    loading: '正在加载',
    pageFailed: '无法加载此页面，请刷新重试。',
    reload: '刷新',
  },
};
