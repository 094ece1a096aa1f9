// Answers of llama.cpp that no program of its own gives: ids with another pre-tokenizer, built-in chat templates.
//
//   ids VOCAB.gguf PRE        stdin: texts, each as "LENGTH\nBYTES\n"; stdout: a line of ids per text
//   chat NAME 0|1             stdin: role, content, role, … as above; stdout: the prompt (1: for an answer)
#include <cstdio>
#include <cstring>
#include <iostream>
#include <string>
#include <vector>

#include "llama.h"

static std::vector<std::string> read_texts() {
    std::vector<std::string> texts;
    for (std::string line; std::getline(std::cin, line);) {
        std::string text(std::stoul(line), '\0');
        std::cin.read(text.data(), text.size());
        std::cin.get();
        texts.push_back(text);
    }
    return texts;
}

static int print_ids(const char * path, const char * pre) {
    llama_model_kv_override overrides[2] = {};
    overrides[0].tag = LLAMA_KV_OVERRIDE_TYPE_STR;
    std::strncpy(overrides[0].key, "tokenizer.ggml.pre", sizeof(overrides[0].key) - 1);
    std::strncpy(overrides[0].val_str, pre, sizeof(overrides[0].val_str) - 1);
    llama_model_params params = llama_model_default_params();
    params.vocab_only = true;
    params.kv_overrides = overrides;
    llama_model * model = llama_model_load_from_file(path, params);
    if (model == nullptr) return 1;
    const llama_vocab * vocab = llama_model_get_vocab(model);
    for (const std::string & text : read_texts()) {
        std::vector<llama_token> ids(text.size() + 8);
        int count = llama_tokenize(vocab, text.data(), text.size(), ids.data(), ids.size(), false, false);
        for (int i = 0; i < count; ++i) std::printf("%d ", ids[i]);
        std::printf("\n");
    }
    return 0;
}

static int print_chat(const char * name, bool add_generation_prompt) {
    std::vector<std::string> texts = read_texts();
    std::vector<llama_chat_message> chat;
    for (size_t i = 0; i + 1 < texts.size(); i += 2) chat.push_back({texts[i].c_str(), texts[i + 1].c_str()});
    std::vector<char> prompt(1 << 16);
    int size = llama_chat_apply_template(name, chat.data(), chat.size(), add_generation_prompt, prompt.data(), prompt.size());
    std::fwrite(prompt.data(), 1, size < 0 ? 0 : size, stdout);
    return size < 0;
}

int main(int argc, char ** argv) {
    llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    if (argc == 4 && std::string(argv[1]) == "ids") return print_ids(argv[2], argv[3]);
    if (argc == 4 && std::string(argv[1]) == "chat") return print_chat(argv[2], argv[3][0] == '1');
    return 2;
}
