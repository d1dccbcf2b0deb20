/*
 * A boot sector that says what it finds: on the screen (int 10h) and the first serial line (int 14h) it prints the
 * drive that it was booted from, then the texts that it reads from the drive's second sector by cylinder, head and
 * sector, and from the third by number where the BIOS has the disk extensions.  Then it powers off by ACPI.
 */
	.code16
	.intel_syntax noprefix
	.set	LOADED_AT, 0x7c00
	.set	BUFFER, 0x8000
	.set	TEXT_MARK, 0x767970		# "pyv": a sector without it is not ours, as on a floppy with files
	.set	PM1A_CONTROL, 0x604		# as the firmware of the i440FX machine places it
	.set	SLEEP_S5, 0x2000

	.globl	_start
_start:
	ljmp	0, offset start
start:
	xor	ax, ax
	mov	ds, ax
	mov	es, ax
	cli
	mov	ss, ax
	mov	sp, LOADED_AT
	sti
	cld
	mov	[drive], dl
	mov	ax, 0x00e3			# 9600 baud, 8 data bits, no parity, one stop bit
	xor	dx, dx
	int	0x14

	mov	si, offset greeting
	call	print
	mov	al, [drive]
	call	print_hex
	mov	si, offset end_of_line
	call	print

	mov	ax, 0x0201			# read one sector: cylinder 0, head 0, sector 2
	mov	bx, BUFFER
	mov	cx, 2
	xor	dh, dh
	mov	dl, [drive]
	int	0x13
	jc	failed
	call	print_sector

	mov	ah, 0x41			# are there the extensions?
	mov	bx, 0x55aa
	mov	dl, [drive]
	int	0x13
	jc	power_off
	cmp	bx, 0xaa55
	jne	power_off
	mov	ah, 0x42
	mov	si, offset packet
	mov	dl, [drive]
	int	0x13
	jc	failed
	call	print_sector
	jmp	power_off

failed:
	push	ax
	mov	si, offset failure
	call	print
	pop	ax
	mov	al, ah
	call	print_hex
	mov	si, offset end_of_line
	call	print

power_off:
	mov	dx, PM1A_CONTROL
	mov	ax, SLEEP_S5
	out	dx, ax
halt:
	hlt
	jmp	halt

print_sector:
	mov	eax, [BUFFER]
	and	eax, 0xffffff
	cmp	eax, TEXT_MARK
	jne	1f
	mov	si, BUFFER
	call	print
1:	ret

/* Print the text at DS:SI, which ends with a zero byte. */
print:
	lodsb
	test	al, al
	jz	1f
	call	print_character
	jmp	print
1:	ret

/* Print AL as two hexadecimal digits. */
print_hex:
	push	ax
	shr	al, 4
	call	print_digit
	pop	ax
	and	al, 15
print_digit:
	add	al, '0'
	cmp	al, '9'
	jbe	print_character
	add	al, 'a' - '0' - 10
print_character:
	pusha
	mov	ah, 0x0e
	mov	bx, 7
	int	0x10
	popa
	pusha
	mov	ah, 0x01
	xor	dx, dx
	int	0x14
	popa
	ret

greeting:	.asciz	"pyvm: boot drive "
failure:	.asciz	"pyvm: int 13h failed: "
end_of_line:	.asciz	"\r\n"
drive:		.byte	0

	.balign	4
packet:						/* EDD: size, count, buffer, sector */
	.byte	16, 0
	.word	1
	.word	BUFFER, 0
	.quad	2

	.org	0x1fe
	.word	0xaa55
