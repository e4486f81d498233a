//go:build !amd64

package postgres

func foldRows(page []byte, columns *[checksumColumns]uint32) { foldRowsGo(page, columns) }
