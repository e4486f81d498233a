#include "textflag.h"

// func foldRowsAVX2(page *byte, rows int, columns *[32]uint32)
//
// Y0 to Y3 are the 32 columns, Y4 is checksumPrime in each of eight lanes. Of a
// row the four steps of checksumMix are done for all columns by turns, as a
// multiplication takes ten cycles.
TEXT ·foldRowsAVX2(SB), NOSPLIT, $0-24
	MOVQ page+0(FP), SI
	MOVQ rows+8(FP), CX
	MOVQ columns+16(FP), DI
	VMOVDQU 0(DI), Y0
	VMOVDQU 32(DI), Y1
	VMOVDQU 64(DI), Y2
	VMOVDQU 96(DI), Y3
	MOVL $16777619, AX
	MOVQ AX, X4
	VPBROADCASTD X4, Y4
	TESTQ CX, CX
	JLE done

row:
	VPXOR 0(SI), Y0, Y0
	VPXOR 32(SI), Y1, Y1
	VPXOR 64(SI), Y2, Y2
	VPXOR 96(SI), Y3, Y3
	VPSRLD $17, Y0, Y5
	VPSRLD $17, Y1, Y6
	VPSRLD $17, Y2, Y7
	VPSRLD $17, Y3, Y8
	VPMULLD Y4, Y0, Y0
	VPMULLD Y4, Y1, Y1
	VPMULLD Y4, Y2, Y2
	VPMULLD Y4, Y3, Y3
	VPXOR Y5, Y0, Y0
	VPXOR Y6, Y1, Y1
	VPXOR Y7, Y2, Y2
	VPXOR Y8, Y3, Y3
	ADDQ $128, SI
	DECQ CX
	JNZ row

done:
	VMOVDQU Y0, 0(DI)
	VMOVDQU Y1, 32(DI)
	VMOVDQU Y2, 64(DI)
	VMOVDQU Y3, 96(DI)
	VZEROUPPER
	RET
