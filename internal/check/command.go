package check

import (
	"path/filepath"
	"strings"
)

// command is what archive_command calls, as far as that can be told without
// running a shell.
type command struct {
	program  string // the word before wal-push and its flags; else the first one
	push     bool   // it calls wal-push of this agent
	path     bool   // it has %p
	operator string // that can hide the exit status of wal-push; "" if none
}

// parseCommand reads archive_command. name is the file name of this agent.
// Words are split and unquoted as POSIX says (Shell Command Language, 2.2
// Quoting), expansions are left as they are. Nothing of the command is repeated
// but a program's name: it may hold secrets.
func parseCommand(text, name string) command {
	c := command{path: hasPath(text)}
	words, operator := shellWords(text)
	c.operator = operator
	for _, w := range words {
		if !isAssignment(w) {
			c.program = w
			break
		}
	}
	for i, w := range words {
		if w != "wal-push" {
			continue
		}
		for _, before := range words[:i] {
			if base := filepath.Base(before); base == name || base == "agent" {
				c.program, c.push = before, true
			}
		}
	}
	return c
}

// hasPath looks for %p, which the server replaces by a path; %% is a percent
// sign (PostgreSQL, 26.3.1).
func hasPath(text string) bool {
	return strings.Contains(strings.ReplaceAll(text, "%%", ""), "%p")
}

// isAssignment says whether a word sets a variable for the command behind it
// (2.9.1 Simple Commands).
func isAssignment(word string) bool {
	name, _, found := strings.Cut(word, "=")
	return found && name != "" && strings.Trim(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_") == ""
}

// shellWords splits a command at blanks and operators. operator is the first
// control or pipe operator outside of quotes.
func shellWords(text string) (words []string, operator string) {
	var word strings.Builder
	inWord := false
	end := func() {
		if inWord {
			words = append(words, word.String())
			word.Reset()
			inWord = false
		}
	}
	quote := byte(0)
	for i := 0; i < len(text); i++ {
		c := text[i]
		switch {
		case quote == '\'' && c != '\'', quote == '"' && c != '"' && c != '\\':
			word.WriteByte(c)
		case quote != 0 && c == quote:
			quote = 0
		case c == '\\':
			inWord = true
			if i++; i < len(text) {
				word.WriteByte(text[i])
			}
		case c == '\'' || c == '"':
			quote, inWord = c, true
		case c == ' ' || c == '\t':
			end()
		case strings.IndexByte("&|;\n", c) >= 0:
			end()
			op := string(c)
			if i+1 < len(text) && text[i+1] == c && c != '\n' {
				i++
				op += op
			}
			if operator == "" && !redirection(text, i, op) {
				operator = op
			}
		default:
			inWord = true
			word.WriteByte(c)
		}
	}
	end()
	return words, operator
}

// redirection says whether the & that ends at i belongs to one, as in 2>&1 and
// &>file.
func redirection(text string, i int, op string) bool {
	if op != "&" {
		return false
	}
	before, after := i > 0 && strings.IndexByte("<>", text[i-1]) >= 0, i+1 < len(text) && text[i+1] == '>'
	return before || after
}
