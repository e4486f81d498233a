package docs_test

import (
	"regexp"
	"slices"
	"strings"
	"testing"

	"agent/testing/harness"
)

// TestAgentCommands looks for every command of the agent that the texts name,
// in code, with its flags, in what the agent itself says there is.
func TestAgentCommands(t *testing.T) {
	known := commands(t)
	checked := 0
	for _, d := range documents(t) {
		for _, words := range calls(d.text) {
			checked++
			if problem := check(known, words); problem != "" {
				t.Errorf("%s: agent %s: %s", d.name, strings.Join(words, " "), problem)
			}
		}
		for _, m := range regexp.MustCompile("`(--[a-z0-9-]+)").FindAllStringSubmatch(d.text, -1) {
			if !slices.ContainsFunc(values(known), func(flags []string) bool { return slices.Contains(flags, m[1]) }) {
				t.Errorf("%s: no command has the flag %s", d.name, m[1])
			}
		}
	}
	if checked < 50 {
		t.Errorf("only %d calls were found", checked)
	}
	for _, bad := range [][]string{{"wal-fech", "x"}, {"repo", "inti"}, {"backup-push", "--no-such"}, {"repo"}} {
		if check(known, bad) == "" {
			t.Errorf("agent %v is taken", bad)
		}
	}
}

func values(m map[string][]string) [][]string {
	var all [][]string
	for _, v := range m {
		all = append(all, v)
	}
	return all
}

// commands asks the agent for its commands and their flags.
func commands(t *testing.T) map[string][]string {
	t.Helper()
	all := make(map[string][]string)
	var ask func(path []string)
	ask = func(path []string) {
		res := harness.Agent(t, nil, append(slices.Clone(path), "--help")...)
		if res.Code != 0 {
			t.Fatalf("agent %v --help: %s", path, res.Stderr)
		}
		var subs [][]string
		if strings.Contains(res.Stdout, " [command] --help") {
			list, _, _ := strings.Cut(res.Stdout, "\nFlags:")
			subs = regexp.MustCompile(`(?m)^  ([a-z-]+) +[A-Z]`).FindAllStringSubmatch(list, -1)
		}
		if len(path) > 0 && len(subs) == 0 {
			all[strings.Join(path, " ")] = regexp.MustCompile(`--[a-z0-9-]+`).FindAllString(res.Stdout, -1)
		}
		for _, m := range subs {
			ask(append(slices.Clone(path), m[1]))
		}
	}
	ask(nil)
	if len(all) < 10 {
		t.Fatalf("only these commands: %v", all)
	}
	return all
}

// refused are calls that a text shows because they fail.
var refused = regexp.MustCompile(`agent [^|\n]*\|\| echo "status \$\?"`)

// calls finds calls of the agent in code: the words behind "agent", up to the
// end of the command.
func calls(text string) [][]string {
	var all [][]string
	code := regexp.MustCompile("(?s)```(sh|yaml)[^\n]*\n.*?```|`[^`\n]+`").FindAllString(text, -1)
	call := regexp.MustCompile(`(?m)(?:^|[\s'"(=` + "`" + `])agent ([a-z][^|;&)\n` + "`" + `]*)`)
	for _, c := range code {
		c = strings.ReplaceAll(c, "\\\n", " ")
		c = refused.ReplaceAllString(c, "")
		for _, m := range call.FindAllStringSubmatch(c, -1) {
			before, _, _ := strings.Cut(m[1], " #")
			all = append(all, strings.Fields(strings.Trim(before, `'"`)))
		}
	}
	return all
}

// check says what is wrong with a call, or "".
func check(known map[string][]string, words []string) string {
	name := strings.Trim(words[0], `'"`)
	if len(words) > 1 {
		if _, ok := known[name+" "+words[1]]; ok {
			name += " " + words[1]
		}
	}
	flags, ok := known[name]
	if !ok {
		return "there is no such command"
	}
	for _, w := range words {
		flag, _, _ := strings.Cut(w, "=")
		flag = strings.Trim(flag, `'"`)
		if strings.HasPrefix(flag, "--") && !slices.Contains(flags, flag) {
			return "there is no flag " + flag
		}
	}
	return ""
}
