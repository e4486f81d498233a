package postgres

import "golang.org/x/sys/cpu"

// foldRows is foldRowsGo, on eight columns at a time where the processor can
// (AVX2, since 2013), which is several times as fast.
func foldRows(page []byte, columns *[checksumColumns]uint32) {
	if rows := len(page) / checksumRow; rows > 0 && cpu.X86.HasAVX2 {
		foldRowsAVX2(&page[0], rows, columns)
		return
	}
	foldRowsGo(page, columns)
}

// foldRowsAVX2 folds rows of checksumRow bytes, from page on, into the columns.
//
//go:noescape
func foldRowsAVX2(page *byte, rows int, columns *[checksumColumns]uint32)
